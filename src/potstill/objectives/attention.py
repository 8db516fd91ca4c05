"""An objective that tells an attention where to look: a way to warm up a module that has to find things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from potstill.errors import RecipeError
from potstill.objectives.base import IGNORE_INDEX, Objective, Role, Seen, check_skip


class SupervisedAttentionObjective(Objective):
    """Negative log of the attention that falls on the places a token's label names, mean over tokens and heads.

    -log Σ_{s in places(t)} softmax_s(q_t · k_s / √d). An attention that starts out even over many keys hardly learns to
    find one of them: what it could read there is averaged away. Told where to look it learns in minutes, and what
    follows can then use it. Supervised attention as in Liu et al. (arXiv 1609.04186) and Mi et al. (arXiv 1608.00112),
    with several right places for a token instead of one. Only for cross-attention on a grid of picture tokens whose
    queries and keys are made by two children of the module, without rotary positions.

    Args:
        name: Its name in logs.
        tap: The attention module.
        labels: Batch key ``[N, T]``: for each token the cells of a 2 x 2 grid over the picture, as a sum of 1, 2, 4
            and 8 in reading order; 0 (nowhere) and -100 do not count.
        grid: Rows and columns of the grid of keys, an even number: ``grid`` x ``grid`` keys from ``skip`` on count.
        heads: Number of heads of the module.
        supervised: How many of them, from the first, are told where to look.
        query: The child that makes the queries; ``query`` in BERT and the text models of BLIP.
        key: The child that makes the keys.
        skip: Keys before the grid, such as the class token of a ViT.
        weight: Factor in the loss.
    """

    role: Role = "task"
    loss_name = "supervised_attention"

    def __init__(
        self,
        name: str,
        tap: str,
        labels: str,
        grid: int,
        *,
        heads: int,
        supervised: int = 1,
        query: str = "q_proj",
        key: str = "k_proj",
        skip: int = 0,
        weight: float = 1.0,
    ):
        super().__init__(name, weight=weight)
        for field, value in (("grid", grid), ("heads", heads), ("supervised", supervised)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 4096:
                raise RecipeError("does not fit", where=f"{name}.{field}", expected="1 to 4096", got=value)
        if grid % 2:
            raise RecipeError("must be even: four places share the grid", where=f"{name}.grid", got=grid)
        if not 1 <= supervised <= heads:
            raise RecipeError("no such heads", where=f"{name}.supervised", expected=f"1 to {heads}", got=supervised)
        check_skip(skip, name)
        self.labels, self.grid, self.heads, self.supervised, self.skip = labels, grid, heads, supervised, skip
        self.query, self.key = f"{tap}.{query}", f"{tap}.{key}"
        self.student_taps = (self.query, self.key)

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Count the tokens that have a place to look at."""
        return self._counts(batch).sum(dtype=torch.float64)

    def total(self, seen: Seen, part: nn.Module | None) -> torch.Tensor:
        """Sum over the tokens, in nats."""
        counts = self._counts(seen.batch)
        rows, tokens = counts.nonzero(as_tuple=True)
        places = self._places(counts.device)[seen.batch[self.labels][rows, tokens]]  # [M, S]
        query = self._heads_of(seen.student.tapped[self.query])[rows, tokens].float()  # [M, h, d]
        key = self._heads_of(seen.student.tapped[self.key])[:, self.skip :][:, : self.grid**2].float()  # [N, S, h, d]
        if key.shape[1] != self.grid**2:
            raise RecipeError(
                "there are fewer keys than the grid has cells", where=f"{self.name}.grid", got=f"{key.shape[1]} keys"
            )
        scores = torch.einsum("mhd,mshd->mhs", query, key[rows]) * query.shape[-1] ** -0.5
        found = scores.log_softmax(-1).masked_fill(~places[:, None], float("-inf")).logsumexp(-1)  # [M, h]
        return -found.mean(1).sum()

    def _counts(self, batch: Mapping[str, Any]) -> torch.Tensor:
        labels = batch[self.labels]
        return (labels != IGNORE_INDEX) & (labels != 0)

    def _heads_of(self, states: torch.Tensor) -> torch.Tensor:
        width = states.shape[-1]
        if width % self.heads:
            raise RecipeError("does not divide the width", where=f"{self.name}.heads", got=f"{self.heads} of {width}")
        return states.unflatten(-1, (self.heads, -1))[..., : self.supervised, :]

    def _places(self, device: torch.device) -> torch.Tensor:
        """Return which keys each label names, ``[16, S]``."""
        half = torch.arange(self.grid, device=device) // (self.grid // 2)
        cell = (2 * half[:, None] + half).flatten()  # [S]
        return (torch.arange(16, device=device)[:, None] >> cell) % 2 == 1
