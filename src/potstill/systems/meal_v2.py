"""MEAL V2 as a trainer: a trained student, several teachers, no labels, a discriminator with a rate of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from potstill.errors import InputError
from potstill.objectives import MealV2DiscriminatorObjective, MealV2SimilarityObjective, Objective
from potstill.train import DistillationArguments, DistillationTrainer

MOMENTUM = 0.9


class MealV2Trainer(DistillationTrainer):
    """Trains a student that has learned its task already on the mean probabilities of several teachers.

    Everything a ``DistillationTrainer`` does holds: the discriminator is a part with its own parameter group, it and
    the state of its optimiser are in every checkpoint, and the student alone is exported. The same system as a recipe
    is ``meal-v2-emoji``.

    The paper's settings are SGD without weight decay at a tenth of the rate of a training from scratch (0.01), batches
    of 512 and 180 epochs; give them in ``args``. With ``optim="sgd"`` the momentum is 0.9. Teachers are given the same
    augmented pictures as the student; keep the augmentation light.

    Args:
        student: Trained already; from a random start labels do as well.
        teachers: Models with the student's classes, as a list or by name. They are frozen in place.
        args: Settings.
        train_dataset: Map-style dataset; needs no labels.
        on: Output of student and teachers, ``[B, C]``.
        teacher_weights: One number for each teacher; None = all alike.
        discriminator_weight: Factor of the discriminator's term; 0 leaves it out.
        adversarial: The student tries to pass for a teacher. False = the official code, where it does not.
        strength: Size of the gradient it gets for that.
        shrink: How much narrower each hidden layer of the discriminator is.
        final_relu: ReLU behind the discriminator's last layer.
        discriminator_learning_rate: Of the discriminator alone.
        drop_at: Share of the training after which every learning rate is ``drop_to`` times as large; None = the
            schedule of ``args``.
        drop_to: See ``drop_at``.
        options: Further arguments of ``DistillationTrainer``.

    Raises:
        InputError: No teacher, numbers that do not fit, or so few classes that the discriminator has no hidden layer.

    Source:
        Shen and Savvides, "MEAL V2", arXiv 2009.08453: rate 0.01, then 0.001 from epoch 101 of 180.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[nn.Module] | Mapping[str, nn.Module],
        *,
        args: DistillationArguments,
        train_dataset: Any,
        on: str = "logits",
        teacher_weights: Sequence[float] | None = None,
        discriminator_weight: float = 1.0,
        adversarial: bool = True,
        strength: float = 1.0,
        shrink: int = 8,
        final_relu: bool = True,
        discriminator_learning_rate: float = 1e-4,
        drop_at: float | None = 100 / 180,
        drop_to: float = 0.1,
        **options: Any,
    ):
        named = teachers if isinstance(teachers, Mapping) else {f"teacher{i}": m for i, m in enumerate(teachers)}
        if not named:
            raise InputError("there is no teacher", where="teachers", expected="at least one model")
        if drop_at is not None and not 0 < drop_at < 1:
            raise InputError("is no share of the training", where="drop_at", expected="a number in (0, 1)", got=drop_at)
        if not 0 < drop_to <= 1:
            raise InputError("does not fit", where="drop_to", expected="a number in (0, 1]", got=drop_to)
        if not 0 < discriminator_learning_rate < float("inf"):
            raise InputError(
                "is no learning rate", where="discriminator_learning_rate", got=discriminator_learning_rate
            )
        self.drop_at, self.drop_to = drop_at, drop_to
        objectives: list[Objective] = [
            MealV2SimilarityObjective("similarity", on, teacher_weights=teacher_weights),
        ]
        if discriminator_weight:
            objectives.append(
                MealV2DiscriminatorObjective(
                    "discriminator",
                    on,
                    teacher_weights=teacher_weights,
                    shrink=shrink,
                    final_relu=final_relu,
                    adversarial=adversarial,
                    strength=strength,
                    weight=discriminator_weight,
                )
            )
            objectives[-1].learning_rate = discriminator_learning_rate
        for objective in objectives:
            objective.of = tuple(named)
        super().__init__(student, objectives, teacher=named, args=args, train_dataset=train_dataset, **options)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Drop every learning rate once, as the paper does."""
        if self.drop_at is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        first = self.drop_at * num_training_steps
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer if optimizer is None else optimizer, lambda step: 1.0 if step < first else self.drop_to
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: DistillationArguments, model: nn.Module | None = None) -> tuple[Any, Any]:
        """Give SGD its momentum, which the Trainer (5.23) has no setting for."""
        cls, options = DistillationTrainer.get_optimizer_cls_and_kwargs(args, model)
        return cls, {"momentum": MOMENTUM, **options} if cls is torch.optim.SGD else options
