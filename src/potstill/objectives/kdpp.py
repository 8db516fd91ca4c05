"""KD++ as an objective: features towards the teacher's class means, alone or with the terms on logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from potstill.errors import RecipeError
from potstill.losses import ClassMeanAccumulator, kdpp_loss, nd_loss
from potstill.objectives.base import (
    OBJECTIVES,
    Objective,
    Role,
    Seen,
    Where,
    check_output,
    outputs_and_taps,
    read_output,
)
from potstill.taps import Signal


class ClassMeans(nn.Module):
    """Class means of the teacher, kept in checkpoints, and the student's projection where widths differ.

    Args:
        classes: C.
        width_s: Width of the student's feature.
        width_t: Width of the teacher's.
    """

    def __init__(self, classes: int, width_s: int, width_t: int):
        super().__init__()
        self.register_buffer("means", torch.zeros(classes, width_t))
        self.projector = None
        if width_s != width_t:
            linear = nn.Linear(width_s, width_t)
            nn.init.zeros_(linear.bias)
            self.projector = nn.Sequential(nn.BatchNorm1d(width_s), nn.Dropout(0.5), linear)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return student features in the teacher's width."""
        return features if self.projector is None else self.projector(features)


@OBJECTIVES.register("nd")
class NDObjective(Objective):
    """Feature direction and norm: ``potstill.losses.nd_loss``, with class means from a survey of the training set.

    A term beside any loss on logits (DKD++, DIST++). Before training the teacher sees the training set once, without
    augmentation where the data can, and the means of its features by label are kept. Where widths differ, the student's
    feature goes through batch norm, dropout and a linear map that are trained along and dropped at export; the batch
    norm then makes rows of a micro-batch influence each other, else gradients do not depend on how a batch is split.

    Args:
        name: Its name in logs.
        tap: The student's penultimate feature, ``[B, D]`` or ``[B, D, 1, 1]``: ``classifier@input``, say.
        labels: Batch key of the true classes; rows with -100 do not count.
        teacher_tap: The same of the teacher; null = as the student's.
        on: The student's class logits.
        weight: Factor in the loss.
    """

    role: Role = "hidden"
    loss_name = "nd"
    surveys = True

    def __init__(
        self,
        name: str,
        tap: str,
        labels: str,
        *,
        teacher_tap: str | None = None,
        on: str = "logits",
        weight: float = 1.0,
    ):
        super().__init__(name, weight=weight)
        check_output(on, f"{name}.on")
        self.tap, self.teacher_tap, self.on, self.labels = tap, teacher_tap or tap, on, labels
        self.student_outputs, taps = outputs_and_taps(on)
        self.student_taps, self.teacher_taps = (*taps, tap), (self.teacher_tap,)
        self._survey: ClassMeanAccumulator | None = None

    def build_part(self, student: Signal, teacher: Signal | None) -> nn.Module:
        """Return room for the means of all classes, and the projection if one is needed."""
        features_s, features_t = self._feature(student, self.tap), self._feature(teacher, self.teacher_tap)
        part = ClassMeans(read_output(student, self.on).shape[-1], features_s.shape[1], features_t.shape[1])
        self.batch_coupled = part.projector is not None
        return part

    def look(self, seen: Seen, part: nn.Module) -> None:
        """Add the teacher's features of a batch to their classes."""
        if self._survey is None:
            self._survey = ClassMeanAccumulator(len(part.means))
        features, mask = self._feature(seen.teacher, self.teacher_tap), Where(labels=self.labels).mask_of(seen.batch)
        self._survey.update(features.float(), seen.batch[self.labels], mask)

    def finish(self, part: nn.Module) -> None:
        """Keep the means; every rank has seen everything."""
        if self._survey is not None:
            part.means.copy_(self._survey.finalize(over_ranks=False)[0])
            self._survey = None

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Count the rows that have a label."""
        return Where(labels=self.labels).count(batch)

    def total(self, seen: Seen, part: nn.Module) -> torch.Tensor:
        """Sum over the rows that count."""
        student, teacher, labels, mask = self._read(seen, part)
        return nd_loss(student, teacher, part.means, labels, mask, allow_empty=True, reduction="sum")

    def _read(self, seen: Seen, part: nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        student = part(self._feature(seen.student, self.tap))
        mask = Where(labels=self.labels).mask_of(seen.batch)
        return student, self._feature(seen.teacher, self.teacher_tap), seen.batch[self.labels], mask

    def _feature(self, signal: Signal, tap: str) -> torch.Tensor:
        feature = signal.tapped[tap]
        if feature.ndim == 4 and feature.shape[2:] == (1, 1):
            feature = feature.flatten(1)
        if feature.ndim != 2:
            raise RecipeError(
                f'"{tap}" is no penultimate feature',
                where=self.name,
                expected="[B, D] or [B, D, 1, 1]",
                got=list(feature.shape),
                hint="Tap the input of the classifier, after pooling.",
            )
        return feature


@OBJECTIVES.register("kdpp")
class KDPPObjective(NDObjective):
    """The whole of KD++: cross-entropy, distillation with a warm-up, and "nd" (``potstill.losses.kdpp_loss``).

    Args:
        name: Its name in logs.
        tap: As for "nd".
        labels: Batch key of the true classes; rows with -100 count in none of the terms.
        teacher_tap: As for "nd".
        on: Class logits, ``[B, C]``.
        teacher_on: The teacher's output, if it has another name.
        ce_weight: Factor of the cross-entropy.
        kd_weight: Factor of the distillation of logits.
        nd_weight: Factor of the feature term.
        temperature: T of the distillation.
        kd_warmup_epochs: Epochs over which the distillation grows to its factor.
        weight: Factor of all three.
    """

    role: Role = "prediction"
    loss_name = "kdpp"

    def __init__(
        self,
        name: str,
        tap: str,
        labels: str,
        *,
        teacher_tap: str | None = None,
        on: str = "logits",
        teacher_on: str | None = None,
        ce_weight: float = 1.0,
        kd_weight: float = 1.0,
        nd_weight: float = 1.0,
        temperature: float = 4.0,
        kd_warmup_epochs: float = 0,
        weight: float = 1.0,
    ):
        super().__init__(name, tap, labels, teacher_tap=teacher_tap, on=on, weight=weight)
        self.teacher_on = teacher_on or on
        check_output(self.teacher_on, f"{name}.teacher_on" if teacher_on else f"{name}.on")
        self.teacher_outputs, taps = outputs_and_taps(self.teacher_on)
        self.teacher_taps = (*taps, self.teacher_tap)
        self.options = {"ce_weight": ce_weight, "kd_weight": kd_weight, "nd_weight": nd_weight}
        self.options |= {"temperature": temperature, "kd_warmup_epochs": kd_warmup_epochs}

    def total(self, seen: Seen, part: nn.Module) -> torch.Tensor:
        """Sum over the rows that count."""
        student, teacher, labels, mask = self._read(seen, part)
        logits = read_output(seen.student, self.on), read_output(seen.teacher, self.teacher_on)
        options = {"mask": mask, "allow_empty": True, "reduction": "sum", "epoch": seen.epoch, **self.options}
        return kdpp_loss(*logits, labels, student, teacher, part.means, **options)
