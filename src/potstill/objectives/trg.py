"""TRG as an objective: the three losses on tokens of one layer of each model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from potstill.errors import RecipeError
from potstill.losses import (
    feature_map_to_tokens,
    sample_tokens,
    trg_global_loss,
    trg_inner_loss,
    trg_local_loss,
    trg_temperature,
)
from potstill.objectives.base import OBJECTIVES, Objective, Role, Seen, Where, check_skip
from potstill.taps import Signal


@OBJECTIVES.register("trg")
class TRGObjective(Objective):
    """Relations between patches: α ``trg_inner_loss`` + β ``trg_local_loss`` + γ ``trg_global_loss``.

    For image classifiers, convolutional and transformers in any combination, beside ``cross_entropy`` and ``kd_kl``
    (T = 4). Both models' tokens are brought to one grid; of every image ``r`` places are drawn anew at every step, as
    its seed and the progress of the training say, so a resumed run draws the same. Tokens are related within a
    micro-batch of one process; under accumulation and several ranks the value is the mean over the micro-batches.

    Args:
        name: Its name in logs.
        tap: Layer of the student: a feature map ``[B, C, H, W]``, or tokens ``[B, T, D]`` that form a square grid.
        teacher_tap: The same of the teacher; null = as the student's.
        skip: Tokens of the student before the grid, such as the class token of a ViT.
        teacher_skip: The same of the teacher.
        grid: Rows and columns of the grid both are averaged to; null = the coarser of the two, shorter side.
        r: Tokens drawn of every image; null = all.
        k: Neighbours of a token in the graph.
        sigma: Width of the graph's weights in squared units, or "mean".
        inner_weight: α; null = 100 n / 49 for n tokens an image.
        local_weight: β.
        global_weight: γ.
        tau_start: Temperature of the global loss at the beginning.
        tau_end: Temperature at the end.
        seed: Of the places that are drawn.
        weight: Factor of all three.
    """

    role: Role = "hidden"
    batch_coupled = True
    loss_name = "trg"

    def __init__(
        self,
        name: str,
        tap: str,
        *,
        teacher_tap: str | None = None,
        skip: int = 0,
        teacher_skip: int = 0,
        grid: int | None = None,
        r: int | None = 8,
        k: int = 8,
        sigma: float | str = "mean",
        inner_weight: float | None = None,
        local_weight: float = 1.0,
        global_weight: float = 0.5,
        tau_start: float = 0.5,
        tau_end: float = 0.07,
        seed: int = 0,
        weight: float = 1.0,
    ):
        super().__init__(name, weight=weight)
        check_skip(skip, name)
        check_skip(teacher_skip, name)
        for field, value in (("inner_weight", inner_weight or 0.0), ("local_weight", local_weight)):
            _check_factor(value, f"{name}.{field}")
        _check_factor(global_weight, f"{name}.global_weight")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise RecipeError("no seed", where=f"{name}.seed", expected="0 to 2**32 - 1", got=seed)
        trg_temperature(0.0, tau_start, tau_end)
        self.tap, self.teacher_tap, self.skip, self.teacher_skip = tap, teacher_tap or tap, skip, teacher_skip
        self.grid, self.r, self.k, self.sigma, self.seed = grid, r, k, sigma, seed
        self.inner_weight, self.local_weight, self.global_weight = inner_weight, local_weight, global_weight
        self.tau_start, self.tau_end = tau_start, tau_end
        self.student_taps, self.teacher_taps = (self.tap,), (self.teacher_tap,)

    def build_part(self, student: Signal, teacher: Signal | None) -> nn.Module | None:
        """Return W of the global loss where widths differ: a linear map without bias."""
        tokens_s, tokens_t = self._tokens(student, teacher)
        D_s, D_t = tokens_s.shape[-1], tokens_t.shape[-1]
        return None if D_s == D_t or not self.global_weight else nn.Linear(D_s, D_t, bias=False)

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Count the rows, with or without a label."""
        return Where().count(batch)

    def total(self, seen: Seen, part: nn.Module | None) -> torch.Tensor:
        """Weigh the value of the micro-batch by its rows."""
        student, teacher = self._tokens(seen.student, seen.teacher)
        n = student.shape[1]
        alpha = 100 * n / 49 if self.inner_weight is None else self.inner_weight
        value = alpha * trg_inner_loss(student, teacher) if alpha else 0.0 * student.float().sum()
        if self.local_weight or self.global_weight:
            student, teacher, _ = sample_tokens(student, teacher, self.r or n, self._generator(seen.progress))
        if self.local_weight:
            value = value + self.local_weight * trg_local_loss(student, teacher, self.k, self.sigma)
        if self.global_weight:
            tau = trg_temperature(seen.progress, self.tau_start, self.tau_end)
            W = None if part is None else part.weight
            value = value + self.global_weight * trg_global_loss(student, teacher, W, tau)
        return value * self.count(seen.batch)

    def _generator(self, progress: float) -> torch.Generator:
        """Return a generator that is the same wherever the training is as far: nothing has to be kept for resuming."""
        mixed = (self.seed * 0x9E3779B97F4A7C15 + round(progress * 2**40)) % 2**63
        return torch.Generator().manual_seed(mixed)

    def _tokens(self, student: Signal, teacher: Signal) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens of both models on one grid, ``[B, n, D_s]`` and ``[B, n, D_t]``."""
        maps = [
            self._as_map(signal.tapped[tap], skip, tap)
            for signal, tap, skip in ((student, self.tap, self.skip), (teacher, self.teacher_tap, self.teacher_skip))
        ]
        grid = self.grid or min(side for one in maps for side in one.shape[2:])
        return tuple(feature_map_to_tokens(one, grid) for one in maps)

    def _as_map(self, features: torch.Tensor, skip: int, tap: str) -> torch.Tensor:
        if features.ndim == 4:
            return features
        if features.ndim != 3:
            raise RecipeError(
                f'"{tap}" gives neither a feature map nor tokens',
                where=self.name,
                expected="[B, C, H, W] or [B, T, D]",
                got=list(features.shape),
            )
        tokens = features[:, skip:]
        side = math.isqrt(tokens.shape[1])
        if side < 1 or side * side != tokens.shape[1]:
            raise RecipeError(
                f'the tokens of "{tap}" form no square grid',
                where=self.name,
                got=f"{tokens.shape[1]} tokens",
                hint="Leave out the tokens before the grid with skip or teacher_skip.",
            )
        return tokens.transpose(1, 2).unflatten(2, (side, side))


def _check_factor(value: float, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise RecipeError("the weight must be finite and not negative", where=where, got=value)
