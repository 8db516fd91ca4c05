"""An objective that tells an attention where to look: a way to warm up a module that has to find things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from potstill.errors import RecipeError
from potstill.objectives.base import IGNORE_INDEX, OBJECTIVES, Objective, Role, Seen


@OBJECTIVES.register("supervised_attention")
class SupervisedAttentionObjective(Objective):
    """Negative log of the attention that falls on the places a token's label names, mean over tokens and heads.

    -log (Σ_{s in places(t)} A_ts / Σ_{s in grid} A_ts). An attention that starts out even over many keys hardly learns
    to find one of them: what it could read there is averaged away. Told where to look it learns in minutes, and what
    follows can then use it. Supervised attention as in Liu et al. (arXiv 1609.04186) and Mi et al. (arXiv 1608.00112),
    with several right places for a token instead of one. For attention to a grid of picture tokens.

    Args:
        name: Its name in logs.
        tap: The attention module, or a tap of its map (``path@cross_attention``).
        labels: Batch key ``[N, T]``: for each of the first T queries the cells of a 2 x 2 grid over the picture, as a
            sum of 1, 2, 4 and 8 in reading order; 0 (nowhere) and -100 do not count.
        grid: Rows and columns of the grid of keys, an even number.
        skip: Keys before the grid, such as the class token of a ViT; negative = the grid begins so many from the end.
        supervised: How many heads, from the first, are told where to look.
        weight: Factor in the loss.
    """

    role: Role = "task"
    loss_name = "supervised_attention"

    def __init__(
        self, name: str, tap: str, labels: str, grid: int, *, skip: int = 0, supervised: int = 1, weight: float = 1.0
    ):
        super().__init__(name, weight=weight)
        for field, value in (("grid", grid), ("supervised", supervised)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 4096:
                raise RecipeError("does not fit", where=f"{name}.{field}", expected="1 to 4096", got=value)
        if isinstance(skip, bool) or not isinstance(skip, int):
            raise RecipeError("no number of tokens", where=f"{name}.skip", got=skip)
        if grid % 2:
            raise RecipeError("must be even: four places share the grid", where=f"{name}.grid", got=grid)
        self.labels, self.grid, self.skip, self.supervised = labels, grid, skip, supervised
        self.tap = tap if "@" in tap else f"{tap}@attention"
        self.student_taps = (self.tap,)

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Count the tokens that have a place to look at."""
        return self._counts(batch).sum(dtype=torch.float64)

    def total(self, seen: Seen, part: nn.Module | None) -> torch.Tensor:
        """Sum over the tokens, in nats."""
        maps = self._on_grid(seen.student.tapped[self.tap])  # [N, h, T, S]
        rows, tokens = self._counts(seen.batch).nonzero(as_tuple=True)
        places = self._places(maps.device)[seen.batch[self.labels][rows, tokens]]  # [M, S]
        maps = maps[rows, :, tokens]  # [M, h, S]
        tiny = torch.finfo(maps.dtype).tiny
        found = (maps * places[:, None]).sum(-1).clamp_min(tiny).log() - maps.sum(-1).clamp_min(tiny).log()
        return -found.mean(1).sum()

    def _on_grid(self, maps: torch.Tensor) -> torch.Tensor:
        heads, keys = maps.shape[1], maps.shape[-1]
        if self.supervised > heads:
            raise RecipeError(
                "no such heads", where=f"{self.name}.supervised", expected=f"1 to {heads}", got=self.supervised
            )
        start = self.skip + (keys if self.skip < 0 else 0)
        if not 0 <= start <= keys - self.grid**2:
            raise RecipeError(
                "there are fewer keys than the grid has cells", where=f"{self.name}.grid", got=f"{keys} keys"
            )
        return maps[:, : self.supervised, :, start : start + self.grid**2]

    def _counts(self, batch: Mapping[str, Any]) -> torch.Tensor:
        labels = batch[self.labels]
        return (labels != IGNORE_INDEX) & (labels != 0)

    def _places(self, device: torch.device) -> torch.Tensor:
        """Return which keys each label names, ``[16, S]``."""
        half = torch.arange(self.grid, device=device) // (self.grid // 2)
        cell = (2 * half[:, None] + half).flatten()  # [S]
        return (torch.arange(16, device=device)[:, None] >> cell) % 2 == 1
