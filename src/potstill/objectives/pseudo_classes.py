"""LELP as an objective: pseudo-classes found in the teacher's embeddings, learned by a student with a wider head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from potstill.errors import RecipeError
from potstill.losses import LELPStatistics, lelp_loss, lelp_targets
from potstill.objectives.base import (
    IGNORE_INDEX,
    OBJECTIVES,
    Objective,
    Seen,
    Where,
    check_output,
    is_tap,
    outputs_and_taps,
    read_output,
)
from potstill.taps import Signal


class FittedBasis(nn.Module):
    """What the survey finds, in buffers; the statistics it is found by are dropped afterwards."""

    def __init__(self, classes: int, subclasses: int, width: int, has_projector: bool):
        super().__init__()
        self.register_buffer("mean", torch.zeros(classes, width))
        self.register_buffer("directions", torch.zeros(classes, width, subclasses))
        self.register_buffer("scale", torch.zeros(classes))
        self.register_buffer("null_projector", torch.zeros(width, width) if has_projector else None)
        self.statistics: LELPStatistics | None = LELPStatistics(classes, width)

    def fields(self) -> tuple[torch.Tensor | None, ...]:
        """Return what ``lelp_targets`` takes."""
        return self.mean, self.directions, self.scale, self.null_projector


@OBJECTIVES.register("lelp")
class LELPObjective(Objective):
    """Cross-entropy over pseudo-classes that lie along the teacher's embedding, for teachers of few classes.

    Before training the teacher looks at the training set once, without augmentation, and the directions of every class
    are fitted. The student needs C·S outputs: the builder "wide_head" makes one.

    Args:
        name: Its name in logs.
        teacher_on: Tap of the teacher's embedding ``[B, D]``: the input of its output layer, ``classifier@input``.
        on: The student's output ``[B, C·S]``; S follows from it.
        teacher_logits: The teacher's output ``[B, C]``.
        labels: Batch key of labels that say, in the survey, which class a row belongs to; None = the teacher's own
            decision. Rows labelled -100 are left out of the survey.
        mask: Batch key of the rows that count; None = all.
        beta: Temperature of the split; a small one puts each example into one pseudo-class.
        temperature: Temperature of the teacher's probabilities.
        null_space: Take out what the teacher's output layer sees of its embedding; in a loop of your own call ``meet``
            first.
        rotate: Turn the directions of a class at random among themselves.
        seed: Seed of that.
        weight: Factor in the loss.
    """

    loss_name = "lelp"
    surveys = True

    def __init__(
        self,
        name: str,
        teacher_on: str,
        *,
        on: str = "wide_logits",
        teacher_logits: str = "logits",
        labels: str | None = None,
        mask: str | None = None,
        beta: float = 1.0,
        temperature: float = 1.0,
        null_space: bool = True,
        rotate: bool = True,
        seed: int = 0,
        weight: float = 1.0,
    ):
        super().__init__(name, weight=weight)
        if not is_tap(teacher_on):
            raise RecipeError(
                "is no tap", where=f"{name}.teacher_on", expected='such as "classifier@input"', got=teacher_on
            )
        for field, value in (("on", on), ("teacher_on", teacher_on), ("teacher_logits", teacher_logits)):
            check_output(value, f"{name}.{field}")
        for field, value in (("beta", beta), ("temperature", temperature)):
            if not 0 < value < float("inf"):
                raise RecipeError("does not fit", where=f"{name}.{field}", expected="a number above 0", got=value)
        self.on, self.embedding, self.logits = on, teacher_on, teacher_logits
        self.labels, self.where = labels, Where(mask=mask)
        self.beta, self.temperature, self.rotate, self.seed = beta, temperature, rotate, seed
        self.student_outputs, self.student_taps = outputs_and_taps(on)
        is_inside = is_tap(teacher_logits)
        self.teacher_outputs = () if is_inside else (teacher_logits,)
        self.teacher_taps = (teacher_on, teacher_logits) if is_inside else (teacher_on,)
        self.null_space = self.reads_weights = null_space
        self._head: nn.Module | None = None

    def meet(self, student: nn.Module, teachers: Mapping[str, nn.Module]) -> None:
        """Find the teacher's output layer, whose weight says what it sees of its embedding."""
        self._head = self._head_of(teachers[self.of[0]]) if self.null_space else None

    def build_part(self, student: Signal, teacher: Signal | None) -> FittedBasis:
        """Return room for the basis, of the sizes that both models show."""
        if self.null_space and self._head is None:
            self._head = self._head_of(None)
        wide, embedding = read_output(student, self.on), teacher.tapped[self.embedding]
        C = read_output(teacher, self.logits).shape[-1]
        if embedding.ndim != 2:
            raise RecipeError(
                "is no embedding of rows",
                where=f"{self.name}.teacher_on",
                expected="(B, D)",
                got=tuple(embedding.shape),
            )
        if wide.ndim != 2 or wide.shape[1] % C:
            raise RecipeError(
                "the student's outputs cannot be shared out over the teacher's classes",
                where=f"{self.name}.on",
                expected=f"(B, {C}·S)",
                got=tuple(wide.shape),
                hint='The builder "wide_head" gives a student S outputs for every class.',
            )
        return FittedBasis(C, wide.shape[1] // C, embedding.shape[1], self.null_space)

    def look(self, seen: Seen, part: FittedBasis) -> None:
        """Gather number, mean and scatter of every class."""
        if part.statistics is None:
            part.statistics = LELPStatistics(*part.mean.shape)
        embedding, logits = seen.teacher.tapped[self.embedding], read_output(seen.teacher, self.logits)
        ids = logits.argmax(-1) if self.labels is None else seen.batch[self.labels]
        keep = ids != IGNORE_INDEX
        mask = self.where.mask_of(seen.batch)
        keep = keep if mask is None else keep & mask
        part.statistics.update(embedding[keep], ids[keep])

    def finish(self, part: FittedBasis) -> None:
        """Fit the basis."""
        head = None if self._head is None else self._head.weight
        basis = part.statistics.fit(
            part.directions.shape[-1], head_weight=head, rotate=self.rotate, seed=self.seed, dtype=torch.float64
        )
        for name, value in vars(basis).items():
            if value is not None:
                getattr(part, name).copy_(value)
        part.statistics = None

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Count the rows."""
        return self.where.count(batch)

    def total(self, seen: Seen, part: FittedBasis) -> torch.Tensor:
        """Sum over the rows, in nats."""
        embedding, logits = seen.teacher.tapped[self.embedding], read_output(seen.teacher, self.logits).float()
        mask = self.where.mask_of(seen.batch)
        if mask is not None:
            embedding, logits = (x.masked_fill(~mask[:, None], 0) for x in (embedding, logits))
        probs = (logits / self.temperature).softmax(-1)
        targets = lelp_targets(embedding, probs, *part.fields(), beta=self.beta)
        return lelp_loss(read_output(seen.student, self.on), targets, mask, reduction="sum")

    def _head_of(self, teacher: nn.Module | None) -> nn.Linear:
        path = self.embedding.partition("@")[0]
        found = dict(teacher.named_modules()).get(path) if teacher is not None else None
        if not isinstance(found, nn.Linear):
            raise RecipeError(
                "the weight of the teacher's output layer is needed to take out what it sees",
                where=f"{self.name}.teacher_on",
                expected="the input of a linear layer",
                got=self.embedding if found is None else type(found).__name__,
                hint="Else set null_space: false.",
            )
        return found
