"""Thompson sampling that never forgets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from potstill.policies.base import POLICIES
from potstill.policies.optima import OptimaPolicy
from potstill.policies.remember import always_one


@POLICIES.register("thompson")
class ThompsonPolicy(OptimaPolicy):
    """OPTIMA with ``gamma = 1``: every play counts the same for ever.

    Shows what forgetting is worth. Better than OPTIMA when the best arm never changes, slow to notice when it does.

    Args:
        arms: As in ``OptimaPolicy``.
        gamma: Always 1; another value warns and counts for nothing, so that one recipe runs under every policy.
        warmup_rounds: As in ``OptimaPolicy``.
        noise_std: As in ``OptimaPolicy``.
        seed: As in ``OptimaPolicy``.
        min_count: As in ``OptimaPolicy``.
    """

    name = "thompson"

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
