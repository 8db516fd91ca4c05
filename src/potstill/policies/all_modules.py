"""All modules at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from potstill.policies.arms import check_arms
from potstill.policies.base import POLICIES, Policy


@POLICIES.register("all")
class AllModulesPolicy(Policy):
    """Has one arm that holds every module and plays it each round: ordinary layer-wise distillation.

    Its total weight on hidden states is M times that of a policy that plays one of M modules; compare at equal total
    weight too. Gamma, noise_std and min_count shape only the posterior it reports; seed and warmup_rounds have no
    effect.

    Args:
        arms: As in ``Policy``; merged into one arm, each module once, in order of first appearance.
        gamma: As in ``Policy``.
        warmup_rounds: Without effect.
        noise_std: As in ``Policy``.
        seed: Without effect.
        min_count: As in ``Policy``.
    """

    name = "all"

    def __init__(
        self,
        arms: int | Iterable[str | Sequence[str]],
        gamma: float = 0.98,
        warmup_rounds: int = 10,
        noise_std: float | Literal["auto"] = "auto",
        seed: int = 0,
        min_count: float = 1e-2,
    ):
        modules = dict.fromkeys(name for arm in check_arms(arms) for name in arm)
        super().__init__([tuple(modules)], gamma, warmup_rounds, noise_std, seed, min_count)

    def _choose(self) -> int:
        return 0
