"""What all policies share: arms, the play-and-learn protocol, discounted statistics, exact save and load."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from potstill.errors import InputError, RecipeError
from potstill.policies.arms import arm_name, check_arms
from potstill.policies.generator import PolicyGenerator
from potstill.policies.posterior import (
    Posterior,
    check_gamma,
    check_min_count,
    check_noise_std,
    check_reward,
    normal_of_means,
)
from potstill.registry import Registry

POLICIES: Registry[type[Policy]] = Registry("policy")

STATE_VERSION = 1


class Policy:
    """Chooses one arm a round; a subclass says only how (``_choose``).

    ``select()`` names the arm of the round, ``update(arm, reward)`` ends the round. Between the two the arm is
    *pending*: selecting again gives it again and draws nothing, so a run stopped in the middle of a round goes on
    exactly. Every policy takes the same options, so one word of a recipe swaps it; ``settings()`` tells which count.

    Args:
        arms: Module names, or tuples of module names, or a number K for the nameless arms "0" .. "K-1".
        gamma: Weight of a play kept from one round to the next, in (0, 1].
        warmup_rounds: Plays of each arm, in turn, before the policy chooses itself (if it learns at all).
        noise_std: Standard deviation of one reward, or "auto" = estimated from the rewards.
        seed: Seed of the policy's own random numbers, 0 or more; the global ones are never touched.
        min_count: Floor of the discounted count in the posterior's std.

    Raises:
        InputError: no arm, an empty or duplicate arm, or an option outside its range.
    """

    name: ClassVar[str]
    learns: ClassVar[bool] = False  # does the choice depend on rewards, after a warm-up

    def __init__(
        self,
        arms: int | Iterable[str | Sequence[str]],
        gamma: float = 0.98,
        warmup_rounds: int = 10,
        noise_std: float | Literal["auto"] = "auto",
        seed: int = 0,
        min_count: float = 1e-2,
    ):
        self.arms: list[tuple[str, ...]] = check_arms(arms)
        self.gamma = check_gamma(gamma)
        self.warmup_rounds = _whole(warmup_rounds, "warmup_rounds")
        if self.warmup_rounds < 1:
            raise InputError("no warm-up", where="warmup_rounds", expected="1 or more", got=warmup_rounds)
        self.noise_std = check_noise_std(noise_std)
        self.min_count = check_min_count(min_count)
        self._generator = PolicyGenerator(seed)
        self.seed = int(seed)
        self.history: list[tuple[int, int, float]] = []
        self._count, self._sum, self._sumsq = ([0.0] * len(self.arms) for _ in range(3))
        self._pending: int | None = None

    @property
    def n_arms(self) -> int:
        """Number of arms K."""
        return len(self.arms)

    @property
    def arm_names(self) -> list[str]:
        """Name of each arm in logs and reports: its modules joined with "+"."""
        return [arm_name(arm) for arm in self.arms]

    @property
    def round(self) -> int:
        """Number of finished rounds; ``history`` numbers them from 1."""
        return len(self.history)

    @property
    def pending(self) -> int | None:
        """Arm selected and not yet rewarded, or None between rounds."""
        return self._pending

    def select(self) -> int:
        """Return the arm of this round: an index into ``arms``. The same again until ``update``."""
        if self._pending is None:
            self._pending = self._choose()
        return self._pending

    def update(self, arm: int, reward: float) -> None:
        """End the round: all arms fade by gamma, then the played one gains this reward.

        Args:
            arm: The arm that ``select`` returned.
            reward: What the round brought, higher = better; a number or a 0-d tensor.

        Raises:
            InputError: an arm outside range or other than the selected one, nothing selected, or a reward that is not
                finite. The policy is then unchanged.
        """
        index = _whole(arm, "arm")
        if not 0 <= index < self.n_arms:
            raise InputError("no such arm", where="arm", expected=f"0 to {self.n_arms - 1}", got=index)
        if self._pending is None:
            raise InputError("no arm is being played", where="arm", got=index, hint="Call select() first.")
        if index != self._pending:
            raise InputError("another arm was selected", where="arm", expected=str(self._pending), got=index)
        value = check_reward(reward)
        gamma = self.gamma
        self._count, self._sum, self._sumsq = (
            [gamma * entry for entry in sums] for sums in (self._count, self._sum, self._sumsq)
        )
        self._count[index] += 1.0
        self._sum[index] += value
        self._sumsq[index] += value * value
        self.history.append((self.round + 1, index, value))
        self._pending = None

    def posterior(self) -> Posterior:
        """Return what the rewards so far say about each arm: float64 tensors ``(K,)``."""
        import torch

        mean, std, noise = self._normal_of_means()
        return Posterior(
            *(torch.tensor(row, dtype=torch.float64) for row in (self._count, self._sum, self._sumsq, mean, std)), noise
        )

    def posterior_by_arm(self) -> dict[str, dict[str, float]]:
        """Return the posterior as plain numbers for a log: name of the arm -> mean, std, count."""
        mean, std, _ = self._normal_of_means()
        rows = zip(self.arm_names, mean, std, self._count)
        return {name: {"mean": m, "std": s, "count": n} for name, m, s, n in rows}

    def settings(self) -> dict[str, Any]:
        """Return the options in force, as plain values; the warm-up only where there is one."""
        settings = {"gamma": self.gamma, "noise_std": self.noise_std, "min_count": self.min_count}
        return {**settings, "warmup_rounds": self.warmup_rounds} if self.learns else settings

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on exactly, in numbers, text, lists and dicts (so it survives JSON)."""
        return {
            "version": STATE_VERSION,
            "policy": self.name,
            "arms": [list(arm) for arm in self.arms],
            "settings": self.settings(),
            "seed": self.seed,
            "round": self.round,
            "pending": self._pending,
            "count": list(self._count),
            "sum": list(self._sum),
            "sumsq": list(self._sumsq),
            "history": [list(play) for play in self.history],
            "random": self._generator.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, in mid-round too.

        The seed may differ: the saved random numbers go on. Everything else this policy was made with must match.

        Raises:
            RecipeError: the state is of another policy, other arms or other settings; names the field.
            InputError: a field is missing or does not hold what ``state_dict`` writes. The policy is then unchanged.
        """
        read = _StateReader(state, self.n_arms)
        if read.field("version") != STATE_VERSION:
            raise read.wrong("version", f"version {STATE_VERSION}", state["version"])
        _must_match("policy.name", self.name, read.field("policy"))
        _must_match("policy.arms", [list(arm) for arm in self.arms], read.field("arms"))
        saved = read.field("settings")
        if not isinstance(saved, Mapping):
            raise read.wrong("settings", "the settings of a policy", saved)
        for field, here in self.settings().items():
            _must_match(f"policy.{field}", here, saved.get(field, "nothing"))
        count, total, squares = read.sums("count"), read.sums("sum"), read.sums("sumsq")
        history = read.history()
        if read.field("round") != len(history):
            raise read.wrong("round", f"{len(history)}, the length of the history", state["round"])
        pending = read.field("pending")
        if pending is not None and not read.is_arm(pending):
            raise read.wrong("pending", f"null or 0 to {self.n_arms - 1}", pending)
        seed = read.field("seed")
        generator = PolicyGenerator(seed)
        try:
            generator.load_state_dict(read.field("random"))
        except InputError as error:
            raise error.at("policy") from error.__cause__

        self._count, self._sum, self._sumsq = count, total, squares
        self.history, self._pending, self.seed, self._generator = history, pending, seed, generator

    def _choose(self) -> int:
        raise NotImplementedError

    def _normal_of_means(self) -> tuple[list[float], list[float], float]:
        return normal_of_means(self._count, self._sum, self._sumsq, self.noise_std, self.min_count)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.arm_names}, round={self.round})"


class _StateReader:
    """Reads a saved state field by field; what is not as ``state_dict`` writes it is an InputError with its name."""

    def __init__(self, state: Mapping[str, Any], n_arms: int):
        self.state, self.n_arms = state, n_arms

    def field(self, name: str) -> Any:
        if not isinstance(self.state, Mapping) or name not in self.state:
            raise InputError("missing in the policy's saved state", where=f"policy.{name}")
        return self.state[name]

    def wrong(self, name: str, expected: str, got: object) -> InputError:
        return InputError("damaged in the policy's saved state", where=f"policy.{name}", expected=expected, got=got)

    def is_arm(self, value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < self.n_arms

    def sums(self, name: str) -> list[float]:
        values = self.field(name)
        fits = isinstance(values, (list, tuple)) and len(values) == self.n_arms and all(map(_is_finite, values))
        if not fits or (name != "sum" and min(values) < 0):
            raise self.wrong(name, f"{self.n_arms} finite numbers", values)
        return [float(value) for value in values]

    def history(self) -> list[tuple[int, int, float]]:
        plays = self.field("history")
        if not isinstance(plays, (list, tuple)):
            raise self.wrong("history", "a list of [round, arm, reward]", plays)
        for number, play in enumerate(plays, start=1):
            fits = isinstance(play, (list, tuple)) and len(play) == 3 and play[0] == number
            if not fits or not self.is_arm(play[1]) or not _is_finite(play[2]):
                raise self.wrong(f"history[{number - 1}]", f"[{number}, arm, reward]", play)
        return [(number, arm, float(reward)) for number, arm, reward in plays]


def _must_match(where: str, here: object, saved: object) -> None:
    if here != saved:
        raise RecipeError(
            "the saved state belongs to another policy",
            where=where,
            expected=f"{here!r} as in this run",
            got=saved,
            hint="Resume with the settings the run was started with, or start a new run.",
        )


def _whole(value: object, where: str) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise InputError("not a whole number", where=where, expected="a whole number", got=value) from error


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
