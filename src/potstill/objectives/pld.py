"""PLD as an objective: one list-wise term on an output with labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from potstill.errors import RecipeError
from potstill.losses import pld_loss, pld_token_loss
from potstill.objectives.base import (
    OBJECTIVES,
    Objective,
    Seen,
    Where,
    check_output,
    outputs_and_taps,
    read_output,
)


@OBJECTIVES.register("pld")
class PLDObjective(Objective):
    """Likelihood of a ranking, the true class first and then the teacher's order: ``potstill.losses.pld_loss``.

    It stands in the place of cross-entropy and distillation together, and needs neither beside it. Rows without a label
    (-100) do not count. A sum over rows: gradients do not depend on how a batch is split.

    Args:
        name: Its name in logs.
        on: Class logits, ``[B, C]``, or those of tokens, ``[B, T, C]``.
        labels: Batch key of the true classes.
        teacher_on: The teacher's output, if it has another name.
        mask: Batch key of a mask; its zeros do not count either.
        shift: Compare position t with label t+1, for causal language models whose collator does not shift.
        tau: Temperature of the teacher's weights.
        weights: "teacher", "uniform" (ListMLE) or "ce" (cross-entropy).
        topk: Rank only this many classes, for large vocabularies; null = all.
        weight: Factor in the loss.
    """

    loss_name = "pld"

    def __init__(
        self,
        name: str,
        on: str,
        labels: str,
        *,
        teacher_on: str | None = None,
        mask: str | None = None,
        shift: bool = False,
        tau: float = 1.0,
        weights: str = "teacher",
        topk: int | None = None,
        weight: float = 1.0,
    ):
        super().__init__(name, weight=weight)
        self.on, self.teacher_on, self.labels, self.mask, self.shift = on, teacher_on or on, labels, mask, shift
        self.options = {"tau": tau, "weights": weights, "topk": topk}
        check_output(on, f"{name}.on")
        check_output(self.teacher_on, f"{name}.teacher_on" if teacher_on else f"{name}.on")
        self.student_outputs, self.student_taps = outputs_and_taps(on)
        self.teacher_outputs, self.teacher_taps = outputs_and_taps(self.teacher_on)

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Count the positions that have a label."""
        return self._counting(batch)[1].sum(dtype=torch.float64)

    def total(self, seen: Seen, part: nn.Module | None) -> torch.Tensor:
        """Sum over the positions that count, in nats."""
        student, teacher = read_output(seen.student, self.on), read_output(seen.teacher, self.teacher_on)
        if self.shift:
            student, teacher = student[:, :-1], teacher[:, :-1]
        labels, mask = self._counting(seen.batch)
        loss = pld_loss if student.ndim == 2 else pld_token_loss
        return loss(student, teacher, labels, mask=mask, allow_empty=True, reduction="sum", **self.options)

    def _counting(self, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the labels and which of them count."""
        if self.labels not in batch:
            raise RecipeError(f'the batch has no "{self.labels}"', where=self.name)
        labels, mask = batch[self.labels], Where(labels=self.labels).mask_of(batch)
        if self.mask is not None:
            mask = mask & Where(mask=self.mask).mask_of(batch)
        return (labels[:, 1:], mask[:, 1:]) if self.shift else (labels, mask)
