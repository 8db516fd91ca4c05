"""MEAL V2's discriminator: tells a student's final outputs from its teachers', and the student learns to pass."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.errors import InputError, ShapeError
from potstill.losses._common import (
    REDUCTIONS,
    Reduction,
    blank,
    check_choice,
    check_mask,
    full_pair,
    reduce_rows,
    without_autocast,
)


def meal_v2_discriminator_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    adversarial: bool = True,
    strength: float = 1.0,
    *,
    final_relu: bool = True,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Binary cross-entropy of a three-layer discriminator on the outputs of student and teachers.

    The value and the discriminator's gradients are the plain ones; ``adversarial`` only turns the gradient into the
    student round. It regularises a little and costs next to nothing; leave it out where outputs are few.

    Args:
        student_logits: ``(N, C)``.
        teacher_logits: The teachers' mean logits, ``(N, C)``; no gradient flows into them. Where only probabilities
            were stored, give both sides as probabilities.
        weights: Three matrices (out, in): C to H, H to G, G to 2.
        biases: Their three vectors.
        adversarial: Multiply the gradient into ``student_logits`` by ``-strength``. False = student and discriminator
            lower this loss together, as the official code does: the student is asked to be recognisable.
        strength: Size of the turned gradient, not negative.
        final_relu: ReLU behind the last layer too, as in the official code. The logits are then not below 0, and the
            loss not below ln 2 / 2.
        mask: True at rows that count, ``(N,)``; None = all.
        reduction: "mean" over the rows that count, "sum", or "none" for ``(N,)`` with 0 at masked rows.

    Returns:
        Nats; a scalar unless ``reduction`` is "none". The value of a row is the mean over both models and both outputs,
        so the mean is that over 2 N x 2 numbers.

    Raises:
        InputError: not three layers; a strength that is negative or not finite; unknown reduction; mask not bool, or
            without a row that counts where a mean is asked for.
        ShapeError: logits, layers or mask do not fit.

    Source:
        Shen and Savvides, "MEAL V2", arXiv 2009.08453. The paper describes an adversary; the official code has one
        optimiser, no reversal and does not detach, so both sides work together. We follow the paper.

    Example:
        >>> import torch
        >>> layers = [torch.zeros(2, 4), torch.zeros(2, 2), torch.zeros(2, 2)], [torch.zeros(2)] * 3
        >>> round(meal_v2_discriminator_loss(torch.ones(3, 4), torch.zeros(3, 4), *layers).item(), 6)
        0.693147
    """
    name = "meal_v2_discriminator_loss"
    check_choice(reduction, REDUCTIONS, name, "reduction")
    student, teacher = full_pair(student_logits, teacher_logits, name)
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ShapeError(
            "student and teacher logits do not fit",
            where=name,
            expected="both (N, C)",
            got=f"{list(student.shape)} and {list(teacher.shape)}",
        )
    if not (strength >= 0 and math.isfinite(strength)):
        raise InputError("strength does not fit", where=name, expected="a finite number from 0", got=strength)
    _check_layers(weights, biases, student.shape[1], name)
    check_mask(mask, student.shape[:1], name, "(N,)")
    if reduction == "mean" and mask is not None and len(mask) and not mask.any():
        raise InputError("mask leaves no row", where=name, expected="at least one True", hint="Skip such a batch.")
    student, teacher = blank(student, mask), blank(teacher, mask)
    if adversarial:
        student = _Reversed.apply(student, strength)
    rows = []
    with without_autocast(student):
        for x, own in ((student, 0), (teacher, 1)):
            for i, (weight, bias) in enumerate(zip(weights, biases)):
                x = F.linear(x, weight.to(x.dtype), bias.to(x.dtype))
                x = x.relu() if i < 2 or final_relu else x
            # Cross-entropy of a logit with 1 is softplus(-logit), with 0 softplus(logit).
            rows.append(F.softplus(-x[:, own]) + F.softplus(x[:, 1 - own]))
    return reduce_rows((rows[0] + rows[1]) / 4, mask, reduction)


class OutputDiscriminator(nn.Module):
    """Three linear layers C, C // shrink, C // shrink², 2 with ReLU: does an output come from student or teachers?

    A part: trained along with the student, thrown away afterwards.

    Args:
        num_classes: C.
        shrink: How much narrower each hidden layer is; 2 to 16.
        final_relu: ReLU behind the last layer too, as in the official code.

    Raises:
        InputError: C // shrink // shrink is below 1, or shrink below 1.

    Source:
        Shen and Savvides, "MEAL V2", arXiv 2009.08453; its 1 x 1 convolutions are linear layers.

    Example:
        >>> import torch
        >>> OutputDiscriminator(64)(torch.zeros(3, 64), torch.zeros(3, 64)).shape
        torch.Size([])
    """

    def __init__(self, num_classes: int, shrink: int = 8, final_relu: bool = True):
        super().__init__()
        if isinstance(shrink, bool) or not isinstance(shrink, int) or shrink < 1:
            raise InputError("shrink does not fit", where="OutputDiscriminator", expected="at least 1", got=shrink)
        first, second = num_classes // shrink, num_classes // shrink // shrink
        if second < 1:
            raise InputError(
                "so few classes leave no hidden layer",
                where="OutputDiscriminator",
                expected=f"at least {shrink * shrink} classes for shrink = {shrink}",
                got=num_classes,
                hint="Take a smaller shrink.",
            )
        self.final_relu = final_relu
        self.layers = nn.ModuleList([nn.Linear(num_classes, first), nn.Linear(first, second), nn.Linear(second, 2)])

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        *,
        adversarial: bool = True,
        strength: float = 1.0,
        mask: Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Return ``meal_v2_discriminator_loss`` with this discriminator's layers."""
        return meal_v2_discriminator_loss(
            student_logits,
            teacher_logits,
            [layer.weight for layer in self.layers],
            [layer.bias for layer in self.layers],
            adversarial,
            strength,
            final_relu=self.final_relu,
            mask=mask,
            reduction=reduction,
        )


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient is multiplied by ``-strength``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, strength: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.strength = inputs[1]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * grad, None


def _check_layers(weights: Sequence[Tensor], biases: Sequence[Tensor], C: int, name: str) -> None:
    if len(weights) != 3 or len(biases) != 3:
        raise InputError("not three layers", where=name, got=f"{len(weights)} weights and {len(biases)} biases")
    width = C
    for i, (weight, bias) in enumerate(zip(weights, biases)):
        out = 2 if i == 2 else weight.shape[0]
        if weight.ndim != 2 or weight.shape != (out, width) or bias.shape != (out,):
            raise ShapeError(
                f"layer {i} does not fit",
                where=name,
                expected=f"weight ({'out' if i < 2 else 2}, {width}) and a bias of as many",
                got=f"{list(weight.shape)} and {list(bias.shape)}",
            )
        width = out
