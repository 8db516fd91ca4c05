"""Decoupled knowledge distillation: the target class and the others, weighted apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import (
    REDUCTIONS,
    Reduction,
    blank,
    by_rows,
    check_choice,
    check_positive,
    kl_rows,
    logit_pair,
    reduce_rows,
)


@by_rows
def dkd(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    ignore_index: int = -100,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    shared_vocab: int | None = None,
) -> Tensor:
    """Split KL(teacher || student) into target-or-not and the shape of the rest, and weigh the two freely.

    T² (alpha TCKD + beta NCKD). In plain KL the second part is scaled by the teacher's doubt 1 - p_y, so a confident
    teacher hardly teaches how the wrong classes relate; here ``beta`` decides. Needs labels, and is made for
    classification: over a large vocabulary the tail of the others is mostly noise. Start with a warm-up of the weight
    (20 epochs in the paper), which belongs to the schedule of the objective and not to this function.

    Args:
        student: Student logits, ``(..., V)`` with V >= 2.
        teacher: Teacher logits, ``(..., V)``; no gradient flows into them.
        target: True classes, integers ``(...)``.
        alpha: Weight of the target part (TCKD).
        beta: Weight of the other classes (NCKD); larger for a confident teacher.
        temperature: T; both logits are divided by it.
        ignore_index: Positions with this target do not count.
        mask: True at positions that count, ``(...)``; None = all. Targets at masked positions are not looked at.
        reduction: "mean" over the positions that count, "sum", or "none" for ``(...)`` with 0 at masked positions.
        shared_vocab: Cut both vocabularies to the first n classes and renormalise.

    Returns:
        Nats times T²; a scalar unless ``reduction`` is "none".

    Raises:
        InputError: temperature not above 0; a target that counts is outside [0, V); unknown reduction; mask not bool.
        ShapeError: V < 2; vocabularies, leading shapes, targets or the mask do not fit.

    Source:
        Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, equation 7. Everything is done with logarithms: the
        target's odds against the rest are a difference of one logit and one log-sum-exp, no large number is subtracted.

    Example:
        >>> import math, torch
        >>> teacher, student = torch.tensor([[math.log(2), 0.0, 0.0]]), torch.zeros(1, 3)
        >>> round(dkd(student, teacher, torch.tensor([0]), temperature=1).item(), 6)
        0.058892
    """
    check_choice(reduction, REDUCTIONS, "dkd", "reduction")
    check_positive(temperature, "dkd", "temperature")
    student, teacher = logit_pair(student, teacher, mask, shared_vocab, "dkd")
    V = student.shape[-1]
    if V < 2:
        raise ShapeError("there is no class but the target", where="dkd", expected="V >= 2", got=f"V = {V}")
    if target.is_floating_point() or target.dtype == torch.bool:
        raise InputError("targets are not class ids", where="dkd", expected="integers", got=target.dtype)
    if target.shape != student.shape[:-1]:
        raise ShapeError(
            "targets do not fit the logits",
            where="dkd",
            expected=f"the leading shape {list(student.shape[:-1])}",
            got=list(target.shape),
        )
    counts = target != ignore_index
    if mask is not None:
        counts = counts & mask
    strange = target[counts & ((target < 0) | (target >= V))]
    if strange.numel():
        raise InputError(
            "a target is no class",
            where="dkd",
            expected=f"0 to {V - 1}, or ignore_index={ignore_index}",
            got=strange[0].item(),
        )
    target = target.long().masked_fill(~counts, 0).unsqueeze(-1)
    two_t, rest_t = _split(blank(teacher, counts) / temperature, target)
    two_s, rest_s = _split(blank(student, counts) / temperature, target)
    rows = alpha * kl_rows(two_t, two_s) + beta * kl_rows(rest_t, rest_s)
    return reduce_rows(temperature**2 * rows, counts, reduction)


def _split(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of (target, others), ``(..., 2)``, and of each class among the others, ``(..., V)``."""
    others = logits.scatter(-1, target, -torch.inf)
    # Around their largest: a log-sum-exp of logits in the thousands has no digits left for what follows the point.
    top = others.detach().amax(-1, keepdim=True)
    odds = (logits.gather(-1, target) - top) - (others - top).logsumexp(-1, keepdim=True)
    return torch.cat([F.logsigmoid(odds), F.logsigmoid(-odds)], -1), F.log_softmax(others, -1)
