"""Factors that bring a term of the loss to the size of another, measured in the first steps and then frozen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from potstill.errors import RecipeError, suggest
from potstill.objectives import Objective

STEPS = 50


class AutoWeight(nn.Module):
    """The factor alpha = mean(other term) / mean(own term), over the first ``STEPS`` steps.

    While it is measured, it is the ratio so far; before the first step that of one batch. It has no parameters, and is
    checkpointed with the parts: a resumed run goes on measuring, or keeps what was frozen.

    Attributes:
        value: alpha.
        steps: Steps measured.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("sums", torch.zeros(2))  # own, other
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("value", torch.ones(()))
        self._is_done = False

    @property
    def is_frozen(self) -> bool:
        """True once all steps are measured."""
        # Asking a tensor on a GPU waits for it: only as long as the answer is no.
        self._is_done = self._is_done or int(self.steps) >= STEPS
        return self._is_done

    def begin(self, own: float, other: float) -> None:
        """Take the ratio of one batch, until the first step is measured."""
        if not int(self.steps) and _can_divide(own, other):
            self.value.fill_(other / own)

    def take(self, own: float, other: float) -> None:
        """Take in one step; terms that are not finite, or 0, count for nothing."""
        if self.is_frozen or not _can_divide(own, other):
            return
        self.sums += self.sums.new_tensor([own, other])
        self.steps += 1
        self.value.copy_(self.sums[1] / self.sums[0])


def _can_divide(own: float, other: float) -> bool:
    return math.isfinite(own) and math.isfinite(other) and own > 0 and other > 0


class AutoWeights:
    """The automatic factors of some objectives; each lives among the parts, under the name of the factor.

    Args:
        objectives: All terms of the loss.
        parts: Where the factors are kept.
    """

    def __init__(self, objectives: Sequence[Objective], parts: nn.ModuleDict):
        self._objectives, self._parts = objectives, parts
        self._names = list(dict.fromkeys(o.alpha for o in objectives if o.alpha is not None))
        for objective in objectives:
            if objective.alpha is not None:
                self._check(objective)

    def build(self, device: torch.device) -> None:
        """Create the factors."""
        for name in self._names:
            self._parts[_key(name)] = AutoWeight().to(device)

    @property
    def are_measured(self) -> bool:
        """True while one of them is not frozen yet."""
        return any(not self._parts[_key(name)].is_frozen for name in self._names)

    def begin(self, means: Mapping[str, float]) -> None:
        """Start from the terms of one batch."""
        for name in self._names:
            self._parts[_key(name)].begin(*self._sides(name, means))

    def take(self, means: Mapping[str, float]) -> None:
        """Take in the mean of every term that played in one step."""
        for name in self._names:
            self._parts[_key(name)].take(*self._sides(name, means))

    def of(self, objective: Objective) -> torch.Tensor | None:
        """Return the factor of an objective, a scalar without a graph, or None if it has none."""
        return None if objective.alpha is None else self._parts[_key(objective.alpha)].value

    def _check(self, objective: Objective) -> None:
        names = [o.name for o in self._objectives if o.alpha is None]
        where = f"{objective.name}.against"
        for name in objective.against:
            if name not in names:
                raise RecipeError(f'no objective "{name}" to measure against', where=where, hint=suggest(name, names))
        if not self._against(objective):
            raise RecipeError("there is nothing to measure an automatic weight against", where=where)

    def _against(self, objective: Objective) -> list[Objective]:
        plain = [o for o in self._objectives if o.alpha is None]
        if objective.against:
            return [o for o in plain if o.name in objective.against]
        return [o for o in plain if o.role == "prediction"] or [o for o in plain if o.role == "task"]

    def _sides(self, name: str, means: Mapping[str, float]) -> tuple[float, float]:
        """Return the weighted sum of the terms that share a factor, and of the terms it is measured against."""
        own = [o for o in self._objectives if o.alpha == name]
        other = self._against(own[0])
        own, other = (sum(o.weight * means.get(o.name, 0.0) for o in side) for side in (own, other))
        return own, other


def _key(name: str) -> str:
    return f"{name}_alpha".replace(".", "_")
