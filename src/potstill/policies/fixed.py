"""One arm for the whole run."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from potstill.errors import InputError, RecipeError, suggest
from potstill.policies.base import POLICIES, Policy


@POLICIES.register("fixed")
class FixedArmPolicy(Policy):
    """Plays the same arm every round, whatever the rewards: what a module alone is worth.

    Takes the options of ``Policy`` besides its own; gamma, noise_std and min_count shape only the posterior it reports,
    seed and warmup_rounds have no effect.

    Args:
        arms: As in ``Policy``.
        arm: Index of the arm to play, or its name ("image_encoder", "text_decoder+multimodal_decoder"), or its modules.
        gamma: As in ``Policy``.
        warmup_rounds: Without effect.
        noise_std: As in ``Policy``.
        seed: Without effect.
        min_count: As in ``Policy``.

    Raises:
        RecipeError: no arm of that index or name; with the nearest name.
        InputError: as in ``Policy``.
    """

    name = "fixed"

    def __init__(
        self,
        arms: int | Iterable[str | Sequence[str]],
        arm: int | str | Sequence[str] = 0,
        gamma: float = 0.98,
        warmup_rounds: int = 10,
        noise_std: float | Literal["auto"] = "auto",
        seed: int = 0,
        min_count: float = 1e-2,
    ):
        super().__init__(arms, gamma, warmup_rounds, noise_std, seed, min_count)
        self.arm = self._find(arm)

    def settings(self) -> dict[str, Any]:
        """Return the options in force, the arm by its index."""
        return {**super().settings(), "arm": self.arm}

    def _choose(self) -> int:
        return self.arm

    def _find(self, arm: int | str | Sequence[str]) -> int:
        if isinstance(arm, str):
            if arm in self.arm_names:
                return self.arm_names.index(arm)
            raise RecipeError(f'unknown arm "{arm}"', where="arm", hint=suggest(arm, self.arm_names))
        if isinstance(arm, (list, tuple)):
            for index, modules in enumerate(self.arms):
                if set(modules) == set(arm):
                    return index
            raise RecipeError(f"unknown arm {list(arm)}", where="arm", hint=suggest("", self.arm_names))
        try:
            index = operator.index(arm)
        except TypeError as error:
            raise InputError("not an arm", where="arm", expected="an index or a name", got=arm) from error
        if not 0 <= index < self.n_arms:
            raise RecipeError("no such arm", where="arm", expected=f"0 to {self.n_arms - 1}", got=index)
        return index
