"""MEAL V2: the mean probabilities of several teachers as the only target."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import (
    REDUCTIONS,
    Reduction,
    blank,
    check_choice,
    check_mask,
    full_pair,
    log_probs,
    reduce_rows,
)


def ensemble_soft_target(teacher_logits: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Return the weighted mean of the teachers' probabilities; not the softmax of their mean logits.

    Args:
        teacher_logits: One ``(..., C)`` for each teacher.
        weights: One number for each, not negative; they are divided by their sum. None = all alike.

    Returns:
        Probabilities ``(..., C)``; no gradient flows through them.

    Raises:
        InputError: no teacher; as many weights as teachers are needed, none negative and not all 0; logits that are
            not floating point.
        ShapeError: the teachers' shapes differ.

    Source:
        Shen and Savvides, "MEAL V2", arXiv 2009.08453, section 3; the weights are ours, the paper has none.

    Example:
        >>> import math, torch
        >>> teachers = [torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2)]
        >>> [round(x, 6) for x in ensemble_soft_target(teachers)[0].tolist()]
        [0.375, 0.625]
    """
    name = "ensemble_soft_target"
    teachers = _checked_teachers(teacher_logits, name)
    shares = _teacher_shares(weights, len(teachers), name)
    return sum(share * logits.softmax(-1) for share, logits in zip(shares, teachers) if share)


def meal_v2_similarity_loss(
    student_logits: Tensor,
    teacher_logits: Sequence[Tensor],
    mask: Tensor | None = None,
    *,
    weights: Sequence[float] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of the student with the mean probabilities of its teachers: no labels, no temperature.

    For a student that is trained already and teachers better than it with the same classes; from a random start
    labels or a longer training do as well. With one teacher it is ``kd_kl`` at T = 1 plus the teacher's entropy.

    Args:
        student_logits: ``(..., C)``.
        teacher_logits: One ``(..., C)`` for each teacher; no gradient flows into them.
        mask: True at rows that count, ``(...)``; None = all.
        weights: See ``ensemble_soft_target``.
        reduction: "mean" over the rows that count, "sum", or "none" for ``(...)`` with 0 at masked rows.

    Returns:
        Nats, at least the entropy of the target; a scalar unless ``reduction`` is "none".

    Raises:
        InputError: no teacher; weights that do not fit; unknown reduction; mask not bool, or without a row that counts
            where a mean is asked for.
        ShapeError: shapes of student, teachers or mask do not fit.

    Source:
        Shen and Savvides, "MEAL V2", arXiv 2009.08453, equation of the similarity loss, as a cross-entropy: the same
        gradient as their KL divergence.

    Example:
        >>> import math, torch
        >>> teachers = [torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2)]
        >>> round(meal_v2_similarity_loss(torch.zeros(1, 2), teachers).item(), 6)
        0.693147
    """
    name = "meal_v2_similarity_loss"
    check_choice(reduction, REDUCTIONS, name, "reduction")
    teachers = _checked_teachers(teacher_logits, name)
    shares = _teacher_shares(weights, len(teachers), name)
    student, _ = full_pair(student_logits, teachers[0], name)
    if student.shape != teachers[0].shape:
        raise ShapeError(
            "student and teacher logits do not fit",
            where=name,
            expected=f"teachers {list(student.shape)}",
            got=list(teachers[0].shape),
        )
    check_mask(mask, student.shape[:-1], name, "the leading shape")
    if reduction == "mean" and mask is not None and mask.numel() and not mask.any():
        raise InputError("mask leaves no row", where=name, expected="at least one True", hint="Skip such a batch.")
    target = sum(share * blank(logits, mask).softmax(-1) for share, logits in zip(shares, teachers) if share)
    # A class that no teacher considers costs nothing, also where the student bans it with -inf.
    rows = -(target * log_probs(blank(student, mask)).masked_fill(target == 0, 0)).sum(-1)
    return reduce_rows(rows, mask, reduction)


def _checked_teachers(teacher_logits: Sequence[Tensor], where: str) -> list[Tensor]:
    """Return every teacher's logits detached and in one precision, at least float32."""
    if isinstance(teacher_logits, Tensor) or not len(teacher_logits):
        raise InputError("there is no teacher", where=where, expected="a list of logits, one for each teacher")
    first = teacher_logits[0]
    for i, logits in enumerate(teacher_logits):
        if not logits.is_floating_point():
            raise InputError("teacher is not floating point", where=f"{where}: teacher {i}", got=logits.dtype)
        if logits.ndim == 0 or logits.shape != first.shape or logits.shape[-1] == 0:
            raise ShapeError(
                "teachers' logits differ in shape",
                where=f"{where}: teacher {i}",
                expected=f"(..., C) = {list(first.shape)}",
                got=list(logits.shape),
            )
    if any(logits.requires_grad for logits in teacher_logits):
        warnings.warn(f"{where}: teacher logits require a gradient; they are detached", stacklevel=3)
    dtype = torch.float32
    for logits in teacher_logits:
        dtype = torch.promote_types(dtype, logits.dtype)
    return [logits.detach().to(dtype) for logits in teacher_logits]


def _teacher_shares(weights: Sequence[float] | None, teachers: int, where: str) -> list[float]:
    """Return the share of every teacher; together they are 1."""
    if weights is None:
        return [1 / teachers] * teachers
    weights = [float(weight) for weight in weights]
    if len(weights) != teachers:
        raise InputError("weights and teachers differ in number", where=where, expected=teachers, got=len(weights))
    if any(not (weight >= 0 and math.isfinite(weight)) for weight in weights) or sum(weights) == 0:
        raise InputError(
            "weights do not fit", where=where, expected="finite numbers, none negative, not all 0", got=weights
        )
    return [weight / sum(weights) for weight in weights]
