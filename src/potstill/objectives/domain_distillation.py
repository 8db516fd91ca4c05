"""DDK's loss as an objective: cross-entropy and a little forward KL in one term."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from potstill.errors import RecipeError
from potstill.losses import ddk_terms, kd_kl
from potstill.losses.fused import LazyLogits, Term, fused_terms
from potstill.objectives.base import (
    IGNORE_INDEX,
    OBJECTIVES,
    Objective,
    Seen,
    check_output,
    outputs_and_taps,
    read_output,
)
from potstill.objectives.running_means import RunningMeans
from potstill.taps import Signal


@OBJECTIVES.register("ddk")
class DDKObjective(Objective):
    """Cross-entropy plus ``gamma`` times KL(teacher || student): ``potstill.losses.ddk_loss``.

    The loss of DDK; its data come from the selection "ddk". It shifts by itself. A sum over tokens: gradients do not
    depend on how a batch is split. The history notes both terms.

    Args:
        name: Its name in logs.
        on: Logits of a causal language model, ``[B, L, V]``.
        labels: Batch key of the tokens to predict, ``[B, L]``, not shifted; -100 does not count.
        teacher_on: The teacher's output, if it has another name.
        gamma: Weight of the divergence within the term.
        temperature: Of the divergence alone.
        weight: Factor in the loss.
    """

    loss_name = "ddk"

    def __init__(
        self,
        name: str,
        on: str,
        labels: str,
        *,
        teacher_on: str | None = None,
        gamma: float = 0.2,
        temperature: float = 1.0,
        weight: float = 1.0,
    ):
        super().__init__(name, weight=weight)
        if not 0 <= gamma < float("inf"):
            raise RecipeError("does not fit", where=f"{name}.gamma", expected="0 or more", got=gamma)
        if not 0 < temperature < float("inf"):
            raise RecipeError("does not fit", where=f"{name}.temperature", expected="above 0", got=temperature)
        check_output(on, f"{name}.on")
        check_output(teacher_on or on, f"{name}.teacher_on" if teacher_on else f"{name}.on")
        self.on, self.teacher_on, self.labels = on, teacher_on or on, labels
        self.gamma, self.temperature = gamma, temperature
        self.student_outputs, self.student_taps = outputs_and_taps(on)
        self.teacher_outputs, self.teacher_taps = outputs_and_taps(self.teacher_on)
        self.takes_lazy = not (self.student_taps or self.teacher_taps)

    def build_part(self, student: Signal, teacher: Signal | None) -> RunningMeans:
        """Return room for what is noted."""
        return RunningMeans(["ce", "kl"])

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Count the tokens to predict."""
        if self.labels not in batch:
            raise RecipeError(f'the batch has no "{self.labels}"', where=self.name)
        return (batch[self.labels][:, 1:] != IGNORE_INDEX).sum(dtype=torch.float64)

    def total(self, seen: Seen, part: nn.Module | None) -> torch.Tensor:
        """Sum over the tokens that count, in nats."""
        student, teacher = read_output(seen.student, self.on), read_output(seen.teacher, self.teacher_on)
        count = self.count(seen.batch)
        if isinstance(student, LazyLogits):
            labels = F.pad(seen.batch[self.labels][:, 1:], (0, 1), value=IGNORE_INDEX)
            options = {"temperature": self.temperature}
            divergence = Term(kd_kl, (teacher,), options, factor=self.gamma, mask=labels != IGNORE_INDEX)
            loss, sums = fused_terms(student, [Term(F.cross_entropy, (labels,)), divergence], budget=seen.logits_budget)
            ce, kl = sums / count.clamp_min(1).to(sums.dtype)
        else:
            ce, kl = ddk_terms(student, teacher, seen.batch[self.labels], self.temperature)
            loss = (ce + self.gamma * kl) * count.to(ce.dtype)
        if part.training and count:
            part.take(ce, kl)
        return loss

    def notes(self, part: nn.Module | None) -> dict[str, float]:
        """Return cross-entropy and divergence, each a running mean."""
        return part.read()
