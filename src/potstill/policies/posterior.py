"""What a policy believes about its arms: discounted Gaussian posterior over the mean reward of each."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from potstill.errors import InputError, ShapeError

if TYPE_CHECKING:
    from torch import Tensor

NEVER_SEEN = 1e-12  # an arm with less discounted count than this has nothing left to say about its mean
MIN_VARIANCE = 1e-16
MAX_REWARD = 1e100  # squares and their sums stay finite


@dataclass(frozen=True, eq=False)
class Posterior:
    """Discounted statistics of K arms and the normal distribution they give for each arm's mean reward.

    All tensors are float64 ``(K,)`` on the CPU.

    Attributes:
        count: Plays, each weighted by ``gamma`` to the number of rounds since.
        sum: Rewards, weighted alike.
        sumsq: Squared rewards, weighted alike.
        mean: Posterior mean, in units of the reward.
        std: Posterior standard deviation, same units; large for an arm that was not played lately.
        noise: Standard deviation of one reward that was given or estimated, same units.
    """

    count: Tensor
    sum: Tensor
    sumsq: Tensor
    mean: Tensor
    std: Tensor
    noise: float


def discounted_posterior(
    arms: Tensor | Sequence[int],
    rewards: Tensor | Sequence[float],
    n_arms: int,
    gamma: float = 0.98,
    noise_std: float | Literal["auto"] = "auto",
    min_count: float = 1e-2,
) -> Posterior:
    """Return what a whole history of plays says about each arm, recent plays counting most.

    The closed form of what ``OptimaPolicy`` keeps up to date one round at a time: a play that lies ``d`` rounds back
    weighs ``gamma ** d``, whichever arm those rounds went to. Use it to analyse a log, or to check a policy.

    Args:
        arms: Arm played in each round, oldest first, ``(t,)``; may be empty.
        rewards: Reward of each round, ``(t,)``.
        n_arms: Number of arms K.
        gamma: Weight kept from one round to the next, in (0, 1]; 1 = nothing is forgotten.
        noise_std: Standard deviation of one reward, or "auto" to estimate it from the spread inside each arm; with
            "auto" a change of the reward's scale scales mean and std alike and so changes no decision.
        min_count: Floor of the count where std is computed, so the std of a forgotten arm stays finite.

    Returns:
        The posterior. An arm never seen (or wholly forgotten) has the mean of all arms, 0 if nothing was seen.

    Raises:
        ShapeError: the two histories are not two lists of one length.
        InputError: an arm outside ``0 .. n_arms - 1``, a reward that is not finite (or beyond 1e100 in size), gamma
            outside (0, 1], or a noise_std or min_count that is not above 0.

    Source:
        arXiv 2310.04550 (discounted Thompson sampling over modules); the Gaussian form follows arXiv 2305.10718. The
        pooled mean of unseen arms, the "auto" noise and the floor of the count are Potstill's choice.

    Example:
        >>> discounted_posterior([0, 1, 0], [1.0, 0.5, 3.0], n_arms=2, gamma=0.5, noise_std=1.0).mean.tolist()
        [2.6, 0.5]
    """
    import torch

    if isinstance(n_arms, bool) or not isinstance(n_arms, int) or n_arms < 1:
        raise InputError("not a number of arms", where="n_arms", expected="a whole number above 0", got=n_arms)
    check_gamma(gamma)
    noise_std = check_noise_std(noise_std)
    check_min_count(min_count)
    played = torch.as_tensor(arms).detach().cpu()
    reward = torch.as_tensor(rewards, dtype=torch.float64).detach().cpu()
    if played.ndim != 1 or played.shape != reward.shape:
        raise ShapeError(
            "a history needs one reward for each arm played",
            expected="arms and rewards of shape (t,)",
            got=f"{tuple(played.shape)} and {tuple(reward.shape)}",
        )
    if played.numel() and (played.is_floating_point() or played.is_complex() or played.dtype == torch.bool):
        raise InputError("arms are not whole numbers", where="arms", expected="integers", got=str(played.dtype))
    played = played.long()
    wrong = (played < 0) | (played >= n_arms)
    if wrong.any():
        raise InputError(
            "no such arm",
            where=f"arms[{int(wrong.nonzero()[0])}]",
            expected=f"0 to {n_arms - 1}",
            got=int(played[wrong][0]),
        )
    for index in (~(reward.abs() <= MAX_REWARD)).nonzero().flatten().tolist()[:1]:
        check_reward(float(reward[index]), where=f"rewards[{index}]")

    ages = torch.arange(len(played) - 1, -1, -1, dtype=torch.float64)
    weight = torch.as_tensor(gamma, dtype=torch.float64) ** ages  # (t,)
    count, total, squares = (
        torch.zeros(n_arms, dtype=torch.float64).index_add_(0, played, weight * value)
        for value in (torch.ones_like(reward), reward, reward.square())
    )
    mean, std, noise = normal_of_means(count.tolist(), total.tolist(), squares.tolist(), noise_std, min_count)
    return Posterior(
        count, total, squares, torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64), noise
    )


def normal_of_means(
    count: Sequence[float],
    total: Sequence[float],
    squares: Sequence[float],
    noise_std: float | Literal["auto"],
    min_count: float,
) -> tuple[list[float], list[float], float]:
    """Return (mean of each arm, std of each arm, noise) from discounted sums, as the plain floats a policy plays by."""
    all_count = math.fsum(count)
    pooled = math.fsum(total) / all_count if all_count > 0.0 else 0.0
    mean = [s / n if n >= NEVER_SEEN else pooled for n, s in zip(count, total)]
    noise = _spread_within_arms(count, total, squares, all_count) if noise_std == "auto" else float(noise_std)
    return mean, [noise / math.sqrt(max(n, min_count)) for n in count], noise


def _spread_within_arms(
    count: Sequence[float], total: Sequence[float], squares: Sequence[float], all_count: float
) -> float:
    spread, seen = 0.0, 0
    for n, s, q in zip(count, total, squares):
        if n >= NEVER_SEEN:
            seen += 1
            spread += q - s * s / n
    return math.sqrt(max(MIN_VARIANCE, spread / max(all_count - seen, 1.0)))


def check_gamma(gamma: float) -> float:
    """Return the discount as a float, or raise InputError if it is outside (0, 1]."""
    if not _is_number(gamma) or not 0.0 < gamma <= 1.0:
        raise InputError("not a discount", where="gamma", expected="a number above 0, at most 1", got=gamma)
    return float(gamma)


def check_noise_std(noise_std: float | str) -> float | Literal["auto"]:
    """Return the noise scale as a float or "auto", or raise InputError."""
    if isinstance(noise_std, str) and noise_std == "auto":
        return "auto"
    if not _is_number(noise_std) or not 0.0 < noise_std < math.inf:
        raise InputError("not a noise scale", where="noise_std", expected='a number above 0, or "auto"', got=noise_std)
    return float(noise_std)


def check_min_count(min_count: float) -> float:
    """Return the floor of the count as a float, or raise InputError if it is not above 0."""
    if not _is_number(min_count) or not 0.0 < min_count < math.inf:
        raise InputError("not a floor of the count", where="min_count", expected="a number above 0", got=min_count)
    return float(min_count)


def check_reward(reward: float, where: str = "reward") -> float:
    """Return a reward (number or 0-d tensor) as a float, or raise InputError if it is not finite or beyond 1e100."""
    value = as_float(reward, where)
    if not abs(value) <= MAX_REWARD:
        raise InputError(
            "not a reward one can learn from",
            where=where,
            expected=f"a finite number of at most {MAX_REWARD:g} in size",
            got=value,
            hint="Look for a loss that became NaN or Inf on the probe set.",
        )
    return value


def as_float(value: object, where: str) -> float:
    """Return a number or a tensor with one element as a float; InputError for anything else."""
    try:
        # Without detach torch warns about a number that still carries its graph.
        return float(value.detach() if hasattr(value, "detach") else value)  # type: ignore[attr-defined, arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError("not a number", where=where, expected="a number", got=value) from error


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
