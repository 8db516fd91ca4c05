"""MEAL V2 as objectives: the mean probabilities of several teachers, and a discriminator on the outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from potstill.errors import InputError, RecipeError
from potstill.losses import OutputDiscriminator, meal_v2_similarity_loss
from potstill.objectives.base import OBJECTIVES, Objective, Seen, Where, check_output, outputs_and_taps, read_output
from potstill.taps import Signal


class EnsembleObjective(Objective):
    """Reads the same output of the student and of every teacher that it names.

    Args:
        name: Its name in logs.
        on: Output of the student.
        teacher_on: That of the teachers, if it has another name.
        mask: Batch key of the rows that count; None = all.
        teacher_weights: One number for each teacher, in the order of ``teachers``; None = all alike.
        weight: Factor in the loss.
    """

    def __init__(
        self,
        name: str,
        on: str,
        *,
        teacher_on: str | None = None,
        mask: str | None = None,
        teacher_weights: Sequence[float] | None = None,
        weight: float = 1.0,
    ):
        super().__init__(name, weight=weight)
        self.on, self.teacher_on, self.where = on, teacher_on or on, Where(mask=mask)
        self.teacher_weights = None if teacher_weights is None else list(teacher_weights)
        check_output(on, f"{name}.on")
        check_output(self.teacher_on, f"{name}.teacher_on")
        self.student_outputs, self.student_taps = outputs_and_taps(on)
        self.teacher_outputs, self.teacher_taps = outputs_and_taps(self.teacher_on)

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Count the rows."""
        return self.where.count(batch)

    def of_teachers(self, seen: Seen) -> list[torch.Tensor]:
        """Return the logits of every teacher."""
        return [read_output(seen.teachers[name], self.teacher_on) for name in self.of]


@OBJECTIVES.register("meal_v2_similarity")
class MealV2SimilarityObjective(EnsembleObjective):
    """Cross-entropy with the mean probabilities of several teachers: the similarity loss of MEAL V2.

    No labels. For a student that is trained already; the teachers have its classes.

    Args:
        name: Its name in logs.
        on: Logits of the student, ``[B, C]``.
        teacher_on: The teachers' output, if it has another name.
        mask: Batch key of the rows that count; None = all.
        teacher_weights: One number for each teacher, in the order of ``teachers``; None = all alike.
        weight: Factor in the loss.
    """

    loss_name = "meal_v2_similarity"

    def total(self, seen: Seen, part: nn.Module | None) -> torch.Tensor:
        """Sum over the rows, in nats."""
        mask = self.where.mask_of(seen.batch)
        student = read_output(seen.student, self.on)
        return meal_v2_similarity_loss(
            student, self.of_teachers(seen), mask, weights=self.teacher_weights, reduction="sum"
        )


@OBJECTIVES.register("meal_v2_discriminator")
class MealV2DiscriminatorObjective(EnsembleObjective):
    """A discriminator that tells the student's logits from the teachers' mean logits, and a student that fools it.

    The discriminator is a part; ``learning_rate: 1.0e-4`` is the paper's for it.

    Args:
        name: Its name in logs.
        on: Logits of the student, ``[B, C]``.
        teacher_on: The teachers' output, if it has another name.
        mask: Batch key of the rows that count; None = all.
        teacher_weights: One number for each teacher; None = all alike.
        shrink: How much narrower each hidden layer of the discriminator is. Two such steps have to leave one unit.
        final_relu: ReLU behind its last layer, as in the official code.
        adversarial: Turn the gradient into the student round. False = both work together, as in the official code.
        strength: Size of the turned gradient.
        weight: Factor in the loss.
    """

    loss_name = "meal_v2_discriminator"

    def __init__(
        self,
        name: str,
        on: str,
        *,
        teacher_on: str | None = None,
        mask: str | None = None,
        teacher_weights: Sequence[float] | None = None,
        shrink: int = 8,
        final_relu: bool = True,
        adversarial: bool = True,
        strength: float = 1.0,
        weight: float = 1.0,
    ):
        super().__init__(name, on, teacher_on=teacher_on, mask=mask, teacher_weights=teacher_weights, weight=weight)
        self.shrink, self.final_relu, self.adversarial, self.strength = shrink, final_relu, adversarial, strength

    def build_part(self, student: Signal, teacher: Signal | None) -> nn.Module:
        """Return the discriminator for as many classes as the student has."""
        logits = read_output(student, self.on)
        if logits.ndim != 2:
            raise RecipeError("are no logits of rows", where=self.name, expected="(B, C)", got=tuple(logits.shape))
        return OutputDiscriminator(logits.shape[-1], self.shrink, self.final_relu)

    def total(self, seen: Seen, part: nn.Module | None) -> torch.Tensor:
        """Sum over the rows, in nats."""
        teachers = self.of_teachers(seen)
        weights = self.teacher_weights or [1.0] * len(teachers)
        if len(weights) != len(teachers):
            raise InputError("and teachers differ in number", where=f"{self.name}.teacher_weights", got=len(weights))
        mean = sum(w / sum(weights) * logits.float() for w, logits in zip(weights, teachers))
        return part(
            read_output(seen.student, self.on),
            mean,
            adversarial=self.adversarial,
            strength=self.strength,
            mask=self.where.mask_of(seen.batch),
            reduction="sum",
        )
