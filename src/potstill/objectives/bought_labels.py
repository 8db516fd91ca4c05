"""Learning from soft labels that a selection bought from the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from potstill.errors import RecipeError
from potstill.losses import kd_kl
from potstill.objectives.base import OBJECTIVES, Objective, Seen

KEYS = ("soft_labels", "is_bought")


@OBJECTIVES.register("bought_labels")
class BoughtLabelsObjective(Objective):
    """KL from the soft labels of the batch to the student, at temperature 1, on the rows that have any.

    For selection: {name: active_distill}, which puts ``soft_labels`` and ``is_bought`` into the batch. The teacher does
    not run in training: what was bought is kept. Beside it stands cross_entropy for the labelled rows.

    Args:
        name: Its name in logs.
        on: Logits of the student, ``[B, C]``.
        weight: Factor in the loss.
    """

    loss_name = "bought_labels"

    def __init__(self, name: str, on: str = "logits", *, weight: float = 1.0):
        super().__init__(name, weight=weight)
        self.on, self.student_outputs = on, (on,)

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Count the rows with a bought label."""
        for key in KEYS:
            if key not in batch:
                raise RecipeError(
                    f'the batch has no "{key}"', where=self.name, hint="Set selection: {name: active_distill}."
                )
        return (batch["is_bought"] != 0).sum(dtype=torch.float64)

    def total(self, seen: Seen, part: nn.Module | None) -> torch.Tensor:
        """Sum the KL in nats."""
        logits, soft = seen.student.outputs[self.on], seen.batch["soft_labels"]
        return kd_kl(logits, soft.log(), temperature=1.0, mask=seen.batch["is_bought"] != 0, reduction="sum")
