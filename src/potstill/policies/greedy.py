"""Always the arm with the best plain mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from potstill.policies.base import POLICIES, Policy
from potstill.policies.remember import always_one


@POLICIES.register("greedy")
class GreedyPolicy(Policy):
    """After the warm-up, the arm with the highest mean reward over its whole past; the lowest index among equals.

    Shows what exploring is worth: it draws no random number and returns to an arm only if the leader's mean sinks
    below it.

    Args:
        arms: As in ``OptimaPolicy``.
        gamma: Always 1; another value warns and counts for nothing, so that one recipe runs under every policy.
        warmup_rounds: Plays of each arm, in turn, before the first choice.
        noise_std: Used for the posterior's band only.
        seed: Without effect.
        min_count: Used for the posterior's band only.
    """

    name = "greedy"
    learns = True

    def __init__(
        self,
        arms: int | Iterable[str | Sequence[str]],
        gamma: float = 1.0,
        warmup_rounds: int = 10,
        noise_std: float | Literal["auto"] = "auto",
        seed: int = 0,
        min_count: float = 1e-2,
    ):
        super().__init__(arms, always_one(gamma, self.name), warmup_rounds, noise_std, seed, min_count)

    def _choose(self) -> int:
        if self.round < self.warmup_rounds * self.n_arms:
            return self.round % self.n_arms
        means = [total / count for total, count in zip(self._sum, self._count)]
        return means.index(max(means))
