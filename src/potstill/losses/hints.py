"""Hints: mean squared error between hidden features."""

from __future__ import annotations

from torch import Tensor

from potstill.errors import ShapeError
from potstill.losses._common import REDUCTIONS, Reduction, blank, check_choice, check_mask, full_pair, reduce_rows


def hint_mse(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, reduction: Reduction = "mean") -> Tensor:
    """Ask that the student's features equal the teacher's.

    The strongest hidden-state signal where the student should be able to take the teacher's place in the middle. The
    student's features go through a projector first (``potstill.align``) if widths differ. Poor where teacher features
    have a few huge channels: those make up nearly all of the value.

    Args:
        student: Student features, already projected to the teacher's width: ``(..., D)``, or a map ``(B, D, H, W)``.
        teacher: Teacher features of the same shape; no gradient flows into them.
        mask: True at tokens that count, ``(...)``, or at pixels, ``(B, H, W)``; None = all.
        reduction: "mean" over features and the tokens that count, "sum" over tokens of the mean over features, or
            "none" for that mean per token, ``(...)`` or ``(B, H, W)``, 0 at masked tokens.

    Returns:
        Squared units of the features; a scalar unless ``reduction`` is "none".

    Raises:
        InputError: unknown reduction; mask not bool.
        ShapeError: widths differ; other axes differ; the mask does not fit.

    Source:
        Romero et al., "FitNets", 2015, equation 3, without the factor one half and as a mean over elements.

    Example:
        >>> import torch
        >>> hint_mse(torch.zeros(2, 3), torch.full((2, 3), 2.0)).item()
        4.0
    """
    check_choice(reduction, REDUCTIONS, "hint_mse", "reduction")
    student, teacher = full_pair(student, teacher, "hint_mse")
    if student.ndim == 4 and teacher.ndim == 4:
        student, teacher = student.movedim(1, -1), teacher.movedim(1, -1)
    if student.ndim == 0 or teacher.ndim == 0:
        raise ShapeError("a scalar is no feature tensor", where="hint_mse", expected="(..., D)")
    if student.shape[-1] != teacher.shape[-1]:
        raise ShapeError(
            f"widths differ: student has {student.shape[-1]} features, teacher {teacher.shape[-1]}",
            where="hint_mse",
            hint="Put the student's features through a projector to the teacher's width first.",
        )
    if student.shape != teacher.shape:
        raise ShapeError(
            "student and teacher features do not stand at the same places",
            where="hint_mse",
            expected=f"teacher {list(student.shape)} (features last)",
            got=list(teacher.shape),
        )
    check_mask(mask, student.shape[:-1], "hint_mse", "one entry per token")
    student, teacher = blank(student, mask), blank(teacher, mask)
    return reduce_rows((student - teacher).square().mean(-1), mask, reduction)
