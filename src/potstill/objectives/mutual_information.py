"""MI-α as an objective: matched layers of student and teacher are to tell as much as possible about each other."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from potstill.align.masks import token_mask
from potstill.errors import RecipeError
from potstill.losses import MIAlphaLoss
from potstill.objectives.base import OBJECTIVES, Objective, Role, Seen, Where
from potstill.taps import Signal

POOLS = ("cls", "mean")
COLLAPSED = 0.1
"""Nats a pair below which a bound has collapsed: the critic sees nothing of the teacher in the student."""
PATIENCE, EVERY = 200, 50


class Critics(nn.Module):
    """The critics of all pairs, and a running mean of their bounds."""

    def __init__(self, losses: Sequence[MIAlphaLoss]):
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.register_buffer("recent", torch.zeros(()))
        self.register_buffer("steps", torch.zeros(()))

    @torch.no_grad()
    def remember(self, bound: torch.Tensor) -> None:
        """Take the mean bound of a step into the running mean."""
        self.recent.lerp_(bound.to(self.recent), 0.02)
        self.steps += 1


@OBJECTIVES.register("mi_alpha")
class MIAlphaObjective(Objective):
    """The negative MI-α bound between matched layers, summed over the pairs; each pair has a critic of its own.

    Widths may differ. The rows of a batch are each other's negatives: the value belongs to the micro-batch, and
    accumulation makes it no better (a warning says so); a larger batch or ``queue`` does. Under several ranks each has
    its own rows.

    Args:
        name: Its name in logs.
        pairs: [student tap, teacher tap] of hidden states ``[B, T, D]``, of maps ``[B, C, H, W]`` (their mean is taken)
            or of one vector a row ``[B, D]``.
        mi_alpha: α of the bound: 1 = InfoNCE, 0 = TUBA.
        pool: How tokens become one vector: "cls" takes the first, "mean" those that count.
        mask: Batch key of the mask of tokens ``[B, T]`` or of rows ``[B]``; a row without any does not count.
        hidden: Width of the critics.
        out: Width in which a critic compares.
        queue: Pairs of earlier batches to compare with besides.
        warmup: Share of the training over which the gradient into the student grows to its full size; the critics
            learn from the start.
        on_small: What a batch with fewer than two rows that count does: "raise", or "skip" for 0.
        weight: Factor in the loss.
    """

    role: Role = "hidden"
    loss_name = "mi_alpha"
    batch_coupled = True

    def __init__(
        self,
        name: str,
        pairs: Sequence[Sequence[str]],
        *,
        mi_alpha: float = 0.9,
        pool: str = "cls",
        mask: str | None = None,
        hidden: int = 512,
        out: int = 64,
        queue: int = 0,
        warmup: float = 0.0,
        on_small: str = "raise",
        weight: float = 1.0,
    ):
        super().__init__(name, weight=weight)
        if isinstance(pairs, str) or not pairs:
            raise RecipeError("no layers to compare", where=f"{name}.pairs", expected="[[student tap, teacher tap]]")
        for i, pair in enumerate(pairs):
            if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(tap, str) for tap in pair):
                raise RecipeError("is no pair of taps", where=f"{name}.pairs[{i}]", got=pair)
        if pool not in POOLS:
            raise RecipeError("unknown way to pool", where=f"{name}.pool", expected='"cls" or "mean"', got=pool)
        if not 0 <= warmup <= 1:
            raise RecipeError("is no share", where=f"{name}.warmup", expected="a number in [0, 1]", got=warmup)
        self.pairs = [(s, t) for s, t in pairs]
        self.pool, self.mask, self.warmup = pool, mask, warmup
        self.critic = {"alpha": mi_alpha, "hidden": hidden, "out": out, "queue": queue, "on_small": on_small}
        self.student_taps = tuple(dict.fromkeys(s for s, _ in self.pairs))
        self.teacher_taps = tuple(dict.fromkeys(t for _, t in self.pairs))
        self.on = ", ".join(self.student_taps)
        self._totals, self._steps, self._warned = 0, 0, set()

    def build_part(self, student: Signal, teacher: Signal | None) -> Critics:
        """Return a critic for every pair."""
        return Critics(
            [MIAlphaLoss(_width(teacher.tapped[t]), _width(student.tapped[s]), **self.critic) for s, t in self.pairs]
        )

    def before_step(self, student: nn.Module, part: nn.Module | None) -> None:
        """Look, now and then, whether the bound has collapsed."""
        self._totals = 0
        self._steps += 1
        if part is None or self._steps % EVERY or "collapse" in self._warned:
            return
        steps = part.steps.item()
        bound = part.recent.item() / (1 - 0.98**steps) if steps else 0.0
        if steps >= PATIENCE and bound < COLLAPSED:
            self._warn(
                "collapse",
                f"the bound of mutual information is {bound:.2f} nats after {steps:.0f} batches: it has collapsed. "
                "Warm it up longer, lower the learning rate or its weight",
            )

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Count the rows."""
        mask = token_mask(batch, self.mask)
        return Where().count(batch) if mask is None else _rows(mask).sum(dtype=torch.float64)

    def total(self, seen: Seen, part: nn.Module | None) -> torch.Tensor:
        """Weigh the sum over the pairs by the rows of the micro-batch."""
        self._totals += part.training
        if self._totals > 1:
            self._warn(
                "accumulation",
                "rows of one micro-batch only are compared with each other: accumulation makes the bound no better. "
                "Raise train.batch_size instead, or set queue",
            )
        share = 1.0 if self.warmup == 0 else min(1.0, seen.progress / self.warmup)
        values = []
        for loss, (s, t) in zip(part.losses, self.pairs):
            student, valid = self._pooled(seen.student.tapped[s], seen.batch)
            teacher, _ = self._pooled(seen.teacher.tapped[t], seen.batch)
            if share < 1:
                # The critics' own gradients stay whole: they have to know the features before they can lead them.
                student = share * student + (1 - share) * student.detach()
            values.append(loss(student, teacher, valid))
        total = torch.stack(values).sum()
        if part.training:
            part.remember(-total.detach() / len(values))
        return total * self.count(seen.batch).to(total.dtype)

    def _pooled(self, states: torch.Tensor, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return one vector a row, and which rows count."""
        mask = token_mask(batch, self.mask)
        valid = None if mask is None else _rows(mask)
        if states.ndim == 4:
            return states.mean((2, 3), dtype=torch.promote_types(states.dtype, torch.float32)), valid
        if states.ndim == 2 or self.pool == "cls":
            return states if states.ndim == 2 else states[:, 0], valid
        states = states.to(torch.promote_types(states.dtype, torch.float32))
        if mask is None or mask.ndim == 1:
            return states.mean(1), valid
        mask = token_mask(batch, self.mask, states.shape[1])
        kept = states.masked_fill(~mask[..., None], 0).sum(1)
        return kept / mask.sum(1, keepdim=True).clamp_min(1), valid

    def _warn(self, what: str, text: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(f"{self.name}: {text}.", stacklevel=3)


def _rows(mask: torch.Tensor) -> torch.Tensor:
    return mask if mask.ndim == 1 else mask.flatten(1).any(1)


def _width(states: torch.Tensor) -> int:
    if states.ndim not in (2, 3, 4):
        raise RecipeError(
            "cannot be pooled", where="pairs", expected="(B, D), (B, T, D) or (B, C, H, W)", got=tuple(states.shape)
        )
    return states.shape[1] if states.ndim == 4 else states.shape[-1]
