"""Span correlation as an objective: products of neighbouring distributions within phrases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from potstill.errors import RecipeError
from potstill.losses import span_correlation_loss, span_pairs
from potstill.objectives.base import (
    OBJECTIVES,
    Objective,
    Seen,
    Where,
    check_output,
    outputs_and_taps,
    read_output,
)


@OBJECTIVES.register("span_correlation")
class SpanCorrelationObjective(Objective):
    """Squared distance between products of neighbouring distributions: ``potstill.losses.span_correlation_loss``.

    Only ever beside a token-wise loss. The batch says which tokens belong together (``span_ids``): see
    ``potstill.data.spans.SpanCollator``. A sum over pairs of tokens: gradients do not depend on how a batch is split.

    Args:
        name: Its name in logs.
        on: Logits, ``[B, L, V]``.
        teacher_on: The teacher's output, if it has another name.
        labels: Batch key of labels; tokens with -100 do not count. null = all.
        span_ids: Batch key of the span each token belongs to, ``[B, L]``; -1 = none.
        shift: Compare position t with token t+1, for causal language models whose collator does not shift.
        temperature: Both logits are divided by it.
        weight: Factor in the loss.
    """

    loss_name = "span_correlation"

    def __init__(
        self,
        name: str,
        on: str,
        *,
        teacher_on: str | None = None,
        labels: str | None = None,
        span_ids: str = "span_ids",
        shift: bool = False,
        temperature: float = 1.0,
        weight: float = 1.0,
    ):
        super().__init__(name, weight=weight)
        if not 0 < temperature < float("inf"):
            raise RecipeError("does not fit", where=f"{name}.temperature", expected="above 0", got=temperature)
        check_output(on, f"{name}.on")
        check_output(teacher_on or on, f"{name}.teacher_on" if teacher_on else f"{name}.on")
        self.on, self.teacher_on, self.labels, self.span_ids = on, teacher_on or on, labels, span_ids
        self.shift, self.temperature = shift, temperature
        self.student_outputs, self.student_taps = outputs_and_taps(on)
        self.teacher_outputs, self.teacher_taps = outputs_and_taps(self.teacher_on)

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Count the pairs of neighbours."""
        return span_pairs(*self._counting(batch)).sum(dtype=torch.float64)

    def total(self, seen: Seen, part: nn.Module | None) -> torch.Tensor:
        """Sum over the pairs, without unit."""
        student, teacher = read_output(seen.student, self.on), read_output(seen.teacher, self.teacher_on)
        if self.shift:
            student, teacher = student[:, :-1], teacher[:, :-1]
        loss = span_correlation_loss(student, teacher, *self._counting(seen.batch), self.temperature)
        return loss * self.count(seen.batch).to(loss.dtype)

    def _counting(self, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the spans and which tokens count."""
        for key in filter(None, (self.span_ids, self.labels)):
            if key not in batch:
                raise RecipeError(
                    f'the batch has no "{key}"',
                    where=self.name,
                    hint="Let the data source give spans of its texts.",
                )
        first = 1 if self.shift else 0
        mask = Where(labels=self.labels).mask_of(batch) if self.labels else None
        return batch[self.span_ids][:, first:], None if mask is None else mask[:, first:]
