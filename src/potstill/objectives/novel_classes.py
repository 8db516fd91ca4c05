"""Objectives of novel class discovery: cosine classification of known classes, and class-relation distillation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from potstill.errors import RecipeError, ShapeError
from potstill.losses import class_relation_kd, sinkhorn_knopp, swapped_prediction_loss
from potstill.objectives.base import (
    IGNORE_INDEX,
    OBJECTIVES,
    Objective,
    Role,
    Seen,
    check_number,
    refuse_unknown_classes,
)
from potstill.taps import Signal


@OBJECTIVES.register("cosine_cross_entropy")
class CosineLabelObjective(Objective):
    """Cross-entropy of cosines over a temperature with labels, for a student whose prototypes have length 1.

    The first stage of novel class discovery. Rows labelled -100 do not count.

    Args:
        name: Its name in logs.
        on: Output of the student, ``[B, K]``: cosines.
        labels: Batch key of the labels, ``[B]``.
        temperature: What the cosines are divided by.
        weight: Factor in the loss.
    """

    role: Role = "task"
    loss_name = "cosine_cross_entropy"

    def __init__(
        self,
        name: str,
        on: str = "known_cosines",
        labels: str = "labels",
        *,
        temperature: float = 0.1,
        weight: float = 1.0,
    ):
        super().__init__(name, weight=weight)
        check_number(temperature, f"{name}.temperature", 0, is_open=True)
        self.on, self.labels, self.temperature = on, labels, float(temperature)
        self.student_outputs = (on,)

    def before_step(self, student: nn.Module, part: nn.Module | None) -> None:
        """Give the prototypes length 1."""
        normalize_prototypes(student, self.name)

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Count the rows with a label."""
        return (batch[self.labels] != IGNORE_INDEX).sum(dtype=torch.float64)

    def total(self, seen: Seen, part: nn.Module | None) -> torch.Tensor:
        """Sum the cross-entropy in nats."""
        cosines, labels = seen.student.outputs[self.on].float(), seen.batch[self.labels]
        refuse_unknown_classes(labels, cosines.shape[-1], self.name)
        return F.cross_entropy(cosines / self.temperature, labels, ignore_index=IGNORE_INDEX, reduction="sum")


class HeadLosses(nn.Module):
    """Part of ``NovelClassObjective``: the loss of each head, summed over training. It has no parameters."""

    def __init__(self, heads: int):
        super().__init__()
        self.register_buffer("sums", torch.zeros(heads))

    def add(self, losses: torch.Tensor) -> None:
        """Add the losses of one batch; what is not finite counts for nothing."""
        self.sums += losses.detach().nan_to_num(0.0, 0.0, 0.0).to(self.sums.dtype)


@OBJECTIVES.register("crkd_ncd")
class NovelClassObjective(Objective):
    """Swapped prediction with Sinkhorn pseudo-labels, and class-relation distillation from the model before discovery.

    The mean over heads of ``swapped_prediction_loss``, plus kd_weight · ``class_relation_kd``. A batch has V views: all
    samples of the first view, then all of the second, and so on, each sample with its label or -100. Labelled samples
    have their class as target, the others what ``sinkhorn_knopp`` says of the same view. Before every step the
    student's prototypes get length 1, and the head with the smallest loss so far becomes ``student.best_head``.

    Pseudo-labels and the gate of the distillation are made from the rows of one micro-batch of one process: under
    accumulation the value is the mean over micro-batches, and under several ranks every rank balances its own rows.
    Make the batch larger, not the accumulation: it wants many more unlabelled rows than there are new classes.

    Args:
        name: Its name in logs.
        on: Output of the student: cosines by every head, ``[V · B, H, K + U]``.
        teacher_on: Output of teacher and student: cosines of the known classes, ``[V · B, K]``.
        labels: Batch key of the labels, ``[V · B]``; -100 = unlabelled.
        views: V, at least 2.
        large_crops: How many of the views, the first, are large: only they have targets and are distilled. None = all.
        kd_weight: alpha of the paper, weight of the distillation; 0 = without, and the teacher does not run.
        temperature: What cosines are divided by.
        kd_temperature: Further temperature of the distillation.
        detach_weight: Take the gate of the distillation as a constant.
        sinkhorn_iters, sinkhorn_epsilon: Of ``sinkhorn_knopp``.
        weight: Factor in the loss.

    Raises:
        RecipeError: an option out of range, labels of no known class, views that do not fit the batch.
    """

    loss_name = "crkd_ncd"
    batch_coupled = True

    def __init__(
        self,
        name: str,
        on: str = "head_cosines",
        teacher_on: str = "known_cosines",
        labels: str = "labels",
        *,
        views: int = 2,
        large_crops: int | None = None,
        kd_weight: float = 0.1,
        temperature: float = 0.1,
        kd_temperature: float = 4.0,
        detach_weight: bool = False,
        sinkhorn_iters: int = 3,
        sinkhorn_epsilon: float = 0.05,
        weight: float = 1.0,
    ):
        super().__init__(name, weight=weight)
        check_number(views, f"{name}.views", 2, whole=True)
        large = views if large_crops is None else large_crops
        check_number(large, f"{name}.large_crops", 1, views, whole=True)
        check_number(kd_weight, f"{name}.kd_weight", 0)
        for option, value in (
            ("temperature", temperature),
            ("kd_temperature", kd_temperature),
            ("sinkhorn_epsilon", sinkhorn_epsilon),
        ):
            check_number(value, f"{name}.{option}", 0, is_open=True)
        check_number(sinkhorn_iters, f"{name}.sinkhorn_iters", 1, whole=True)
        self.on, self.teacher_on, self.labels, self.views, self.large = on, teacher_on, labels, views, large
        self.kd_weight, self.temperature, self.kd_temperature = float(kd_weight), temperature, kd_temperature
        self.detach_weight = detach_weight
        self.sinkhorn = {"num_iters": sinkhorn_iters, "epsilon": sinkhorn_epsilon}
        self.student_outputs = (on, teacher_on)
        self.teacher_outputs = (teacher_on,) if kd_weight else ()

    def build_part(self, student: Signal, teacher: Signal | None) -> nn.Module:
        """Return the record of the heads' losses."""
        return HeadLosses(student.outputs[self.on].shape[1])

    def before_step(self, student: nn.Module, part: nn.Module | None) -> None:
        """Give the prototypes length 1, and tell the student which head is the best so far."""
        normalize_prototypes(student, self.name)
        if part is not None and hasattr(student, "best_head"):
            student.best_head.copy_(part.sums.argmin())

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Count the samples, whatever their number of views."""
        rows = batch[self.labels]
        return torch.tensor(len(rows) / self.views, dtype=torch.float64, device=rows.device)

    def total(self, seen: Seen, part: nn.Module | None) -> torch.Tensor:
        """Weigh the mean over heads and samples, in nats, by the number of samples."""
        labels, cosines = self._by_view(seen.batch[self.labels], seen.student.outputs[self.on])
        V, B = labels.shape
        labels, logits = labels[0], cosines.float().transpose(1, 2)  # [B], [V, H, B, K + U]
        if V * B == 0:
            return cosines.float().sum()
        known = seen.student.outputs[self.teacher_on].shape[-1]
        refuse_unknown_classes(labels, known, self.name)
        is_labeled = labels != IGNORE_INDEX
        targets = self._targets(logits.detach()[: self.large], labels, is_labeled, known)
        heads = swapped_prediction_loss(logits, targets, num_large_crops=self.large, temperature=self.temperature)
        if part is not None and part.training:
            part.add(heads)
        loss = heads.mean()
        if self.kd_weight:
            old = self._by_view(seen.batch[self.labels], seen.teacher.outputs[self.teacher_on])[1]
            if old.shape[-1] != known:
                raise RecipeError(
                    "the teacher knows other classes", where=self.name, expected=f"{known} classes", got=old.shape[-1]
                )
            loss = loss + self.kd_weight * class_relation_kd(
                old[: self.large],
                logits[: self.large],
                is_labeled,
                temperature=self.temperature,
                kd_temperature=self.kd_temperature,
                detach_weight=self.detach_weight,
            )
        return loss * B

    def _by_view(self, labels: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return labels ``[V, B]`` and values ``[V, B, ...]``; refuse batches that do not hold V views of each."""
        if labels.ndim != 1 or len(values) != len(labels) or len(labels) % self.views:
            raise ShapeError(
                f"a batch is not of {self.views} views",
                where=self.name,
                expected=f"{self.labels} and outputs of {self.views} x B rows",
                got=f"{list(labels.shape)} and {list(values.shape)}",
            )
        by_view = labels.view(self.views, -1)
        if (by_view != by_view[0]).any():
            raise RecipeError(
                "the views of a sample have different labels",
                where=self.name,
                expected="all samples of the first view, then all of the second",
                hint="Let the data make the views: data: {views: 2}.",
            )
        return by_view, values.unflatten(0, by_view.shape)

    def _targets(
        self, logits: torch.Tensor, labels: torch.Tensor, is_labeled: torch.Tensor, known: int
    ) -> torch.Tensor:
        """Return targets ``[V_large, H, B, K + U]``: classes of the labelled rows, pseudo-labels of the others."""
        targets = torch.zeros_like(logits)
        targets[:, :, is_labeled, :known] = F.one_hot(labels[is_labeled], known).to(targets.dtype)
        free = ~is_labeled
        for view in range(len(targets)):
            for head in range(targets.shape[1]):
                targets[view, head, free, known:] = sinkhorn_knopp(logits[view, head, free, known:], **self.sinkhorn)
        return targets


def normalize_prototypes(student: nn.Module, where: str) -> None:
    """Ask the student to give its prototypes length 1; refuse one that cannot."""
    normalize = getattr(student, "normalize_prototypes", None)
    if normalize is None:
        raise RecipeError(
            "the student has no prototypes to normalise",
            where=where,
            expected="a NovelClassModel, or a model with normalize_prototypes()",
            got=type(student).__name__,
            hint="student: {builder: new, family: novel_classes}.",
        )
    normalize()
