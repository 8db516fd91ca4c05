"""Robust active distillation: which samples to ask a teacher about who is wrong on some of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from potstill.errors import InputError, ShapeError

_TOLERANCE = 1e-12  # sums of float64 are as exact as this; what lies closer together counts as equal


class RADResult(NamedTuple):
    """What ``rad_distribution`` found.

    Attributes:
        probs: The distribution over the pool, ``(n,)``, float64.
        k_star: How many samples have a probability above 0.
        value: Expected gain that is left after the adversary's choice.
    """

    probs: Tensor
    k_star: int
    value: float


@torch.no_grad()
def rad_distribution(gains: Tensor, n_wrong: int, min_support: int = 1) -> RADResult:
    """Return the distribution over a pool whose gain is largest if an adversary spoils the worst ``n_wrong`` of it.

    The k most informative samples get probabilities in inverse proportion to their gains, so each of them brings the
    same expected gain and the adversary has no favourite; k makes (k - n_wrong) / (sum of inverse gains) largest. The
    most informative sample, which a teacher is often wrong about, is drawn least often among them. For a teacher known
    to be right everywhere (n_wrong = 0) all goes to the best sample, and plain uncertainty sampling does as well.

    Args:
        gains: What each label would bring if right, ``(n,)``, above 0: ``margin_gains`` or any other.
        n_wrong: m, how many labels of the pool the teacher is taken to get wrong, 0 to n - 1.
        min_support: The least k: the query budget, if as many samples are to be drawn.

    Returns:
        ``RADResult(probs, k_star, value)``, computed in float64. Equal gains count in their order where k ends.

    Raises:
        InputError: gains not above 0, not finite, or too far apart; n_wrong or min_support outside its range.
        ShapeError: not one axis, or an empty pool.

    Source:
        "Robust Active Distillation", ICLR 2023, arXiv 2210.01213. The closed form follows from its game; it was checked
        against a linear programme.

    Example:
        >>> import torch
        >>> result = rad_distribution(torch.tensor([1.0, 0.5, 0.25]), n_wrong=1)
        >>> [round(p, 3) for p in result.probs.tolist()], result.k_star, round(result.value, 3)
        ([0.333, 0.667, 0.0], 2, 0.333)
    """
    where = "rad_distribution"
    gains = _vector(gains, where, "gains")
    n = len(gains)
    if not (torch.isfinite(gains).all() and (gains > 0).all()):
        raise InputError("gains do not fit", where=where, expected="finite numbers above 0", got=f"{gains.min():.3g}")
    _check_whole(n_wrong, 0, n - 1, where, "n_wrong")
    _check_whole(min_support, 1, n, where, "min_support")
    order = gains.argsort(descending=True, stable=True)
    top = gains[order[0]]
    inverse = (gains[order] / top).reciprocal()
    sums = inverse.cumsum(0)  # H_k, for gains in units of the largest
    if not torch.isfinite(sums).all():
        raise InputError("gains are too far apart", where=where, expected="ratios below 1e308", got=gains.min().item())
    values = (torch.arange(1, n + 1, device=gains.device) - n_wrong) / sums
    values[: min_support - 1] = -torch.inf
    best = values.max()
    # The first of equals: rounding must not decide among supports of the same value.
    k = 1 + int((values >= best - _TOLERANCE * best.abs()).int().argmax())
    probs = torch.zeros_like(gains)
    probs[order[:k]] = inverse[:k] / sums[k - 1]
    return RADResult(probs, k, (values[k - 1] * top).item())


@torch.no_grad()
def inclusion_probabilities(probs: Tensor, budget: int) -> Tensor:
    """Return the chance of each sample to be among ``budget`` different ones: budget · probs, none above 1.

    What is cut off above 1 is spread over the others in proportion to ``probs``, until nothing is left to cut.

    Args:
        probs: A distribution over the pool, ``(n,)``.
        budget: b, how many samples are to be drawn, 1 to the number of samples with a probability above 0.

    Returns:
        ``(n,)``, float64, in [0, 1], with the sum b.

    Raises:
        InputError: entries below 0, not finite, or that do not sum to 1 ± 1e-6; a budget outside its range.
        ShapeError: not one axis, or an empty pool.

    Source:
        Ours: arXiv 2210.01213 samples, and does not say how b different samples come about.

    Example:
        >>> import torch
        >>> [round(p, 3) for p in inclusion_probabilities(torch.tensor([0.75, 0.125, 0.125]), 2).tolist()]
        [1.0, 0.5, 0.5]
    """
    where = "inclusion_probabilities"
    probs = _vector(probs, where, "probs")
    if not ((probs >= 0).all() and (probs.sum() - 1).abs() <= 1e-6):
        raise InputError(
            "no distribution", where=where, expected="entries of 0 or more that sum to 1 ± 1e-6", got=f"{probs.sum()}"
        )
    _check_whole(budget, 1, len(probs), where, "budget")
    support = int((probs > 0).sum())
    if budget > support:
        raise InputError(
            "budget is larger than the support",
            where=where,
            expected=f"at most {support}, the samples with a probability above 0",
            got=budget,
            hint="Pass rad_distribution(..., min_support=budget).",
        )
    is_capped = torch.zeros_like(probs, dtype=torch.bool)
    while True:
        rest = probs.masked_fill(is_capped, 0)
        left = budget - int(is_capped.sum())
        spread = rest * (left / rest.sum().clamp_min(torch.finfo(rest.dtype).tiny))
        too_many = spread > 1 - _TOLERANCE
        if not too_many.any():
            return spread.masked_fill(is_capped, 1)
        is_capped |= too_many


@torch.no_grad()
def systematic_sample(inclusion: Tensor, offset: float) -> Tensor:
    """Draw different samples with given chances: the running sum, read at offset, offset + 1, offset + 2, and so on.

    One random number decides all. Neighbours in the order of the pool are seldom drawn together, so shuffle a pool
    whose order means something.

    Args:
        inclusion: The chance of each sample, ``(n,)`` in [0, 1]; the sum is a whole number b >= 1.
        offset: A number in [0, 1), drawn uniformly.

    Returns:
        The b drawn indices, ``(b,)``, int64, ascending. Over uniform offsets sample i is among them with its chance.

    Raises:
        InputError: offset outside [0, 1), chances outside [0, 1], or a sum that is no whole number (± 1e-6).
        ShapeError: not one axis, or an empty pool.

    Source:
        Systematic sampling with unequal chances (Madow, 1949); our choice for arXiv 2210.01213.

    Example:
        >>> import torch
        >>> systematic_sample(torch.tensor([1.0, 0.5, 0.5]), 0.75).tolist()
        [0, 2]
    """
    where = "systematic_sample"
    inclusion = _vector(inclusion, where, "inclusion")
    if not 0 <= offset < 1:
        raise InputError("offset does not fit", where=where, expected="a number in [0, 1)", got=offset)
    if not ((inclusion >= 0).all() and (inclusion <= 1 + _TOLERANCE).all()):
        raise InputError("chances do not fit", where=where, expected="numbers in [0, 1]")
    sums = inclusion.cumsum(0)
    total = sums[-1].item()
    b = round(total)
    if b < 1 or abs(total - b) > 1e-6:
        raise InputError("chances do not sum to a whole number", where=where, expected="1, 2, ...", got=total)
    # The last sum is made exactly b, also where it stands several times (chances of 0 at the end).
    sums = torch.where(sums == sums[-1], float(b), sums * (b / total))
    reached = torch.floor(sums - offset + _TOLERANCE)
    before = torch.cat([reached.new_tensor([math.floor(_TOLERANCE - offset)]), reached[:-1]])
    return (reached > before).nonzero().squeeze(1)


def _vector(values: Tensor, where: str, name: str) -> Tensor:
    if not isinstance(values, Tensor) or not values.is_floating_point():
        raise InputError(f"{name} are no numbers", where=where, expected="a floating point tensor", got=type(values))
    if values.ndim != 1 or len(values) < 1:
        raise ShapeError(f"{name} do not fit", where=where, expected="(n,), n >= 1", got=list(values.shape))
    return values.detach().double()


def _check_whole(value: int, low: int, high: int, where: str, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(f"{name} does not fit", where=where, expected=f"{low} to {high}", got=value)
