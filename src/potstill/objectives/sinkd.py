"""SinKD as an objective: the transport cost between the outputs of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from potstill.losses import sinkhorn_kd_loss, sinkhorn_kd_token_loss
from potstill.objectives.base import (
    OBJECTIVES,
    Objective,
    Seen,
    Where,
    check_output,
    outputs_and_taps,
    read_output,
)


@OBJECTIVES.register("sinkd")
class SinkDObjective(Objective):
    """Sinkhorn distance between the student's and the teacher's probabilities: ``potstill.losses.sinkhorn_kd_loss``.

    Only ever beside ``cross_entropy`` or ``kd_kl``: it does not know which teacher row belongs to which sample. Rows
    are matched within a micro-batch of one process; under accumulation and several ranks the value is the mean over the
    micro-batches, weighted by their rows, and under "sum" it shrinks with their size.

    Args:
        name: Its name in logs.
        on: Class logits, ``[B, C]``, or those of tokens, ``[B, T, C]``.
        teacher_on: The teacher's output, if it has another name.
        labels: Batch key of labels; rows with -100 are left out. null = all rows.
        mask: Batch key of a mask, in place of labels.
        temperature: Both logits are divided by it.
        epsilon: Strength of the entropy.
        n_iters: Normalisations of rows and columns.
        reduction: "sum" over all pairs, or "mean", that sum over the rows.
        debiased: Take off half of each side's cost to itself.
        group_size: Most tokens that are matched with each other, for logits of tokens.
        weight: Factor in the loss. 8e-4 with "sum" is what the authors' code runs with.
    """

    batch_coupled = True
    loss_name = "sinkd"

    def __init__(
        self,
        name: str = "sinkd",
        on: str = "logits",
        *,
        teacher_on: str | None = None,
        labels: str | None = None,
        mask: str | None = None,
        temperature: float = 2.0,
        epsilon: float = 0.1,
        n_iters: int = 20,
        reduction: str = "sum",
        debiased: bool = False,
        group_size: int = 128,
        weight: float = 0.8,
    ):
        super().__init__(name, weight=weight)
        self.on, self.teacher_on, self.where = on, teacher_on or on, Where(mask=mask, labels=labels)
        self.options = {"temperature": temperature, "epsilon": epsilon, "n_iters": n_iters}
        self.options |= {"reduction": reduction, "debiased": debiased}
        self.group_size = group_size
        check_output(on, f"{name}.on")
        check_output(self.teacher_on, f"{name}.teacher_on" if teacher_on else f"{name}.on")
        self.student_outputs, self.student_taps = outputs_and_taps(on)
        self.teacher_outputs, self.teacher_taps = outputs_and_taps(self.teacher_on)

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Count the rows."""
        return self.where.count(batch)

    def total(self, seen: Seen, part: nn.Module | None) -> torch.Tensor:
        """Weigh the cost of the micro-batch by its rows."""
        student, teacher = read_output(seen.student, self.on), read_output(seen.teacher, self.teacher_on)
        mask = self.where.mask_of(seen.batch)
        if student.ndim == 3:
            cost = sinkhorn_kd_token_loss(student, teacher, mask, **self.options, group_size=self.group_size)
        else:
            cost = sinkhorn_kd_loss(student, teacher, mask, **self.options)
        return cost * self.where.count(seen.batch)
