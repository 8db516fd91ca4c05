"""Features of a teacher, image by image as far as the image is to be trusted."""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import full_pair

_HERE = "weighted_feature_alignment"
_LEAST = 1e-12


def weighted_feature_alignment(student_feat: Tensor, teacher_feat: Tensor, weight: Tensor) -> Tensor:
    """Mean squared error between features, each image weighing as much as it is trusted.

    For images collected from the web, where the weight is the score of ``select_web_instances``. It divides by the sum
    of the weights of the batch, so only their proportions matter, and splitting a batch changes the value.

    Args:
        student_feat: Student features, already projected to the teacher's width, ``(n, d)``.
        teacher_feat: Teacher features, ``(n, d)``; no gradient flows into them.
        weight: Not below 0, ``(n,)``; no gradient flows into it. What stands in a row of weight 0 (NaN, Inf) reaches
            neither value nor gradient; all 0 gives 0 with a graph.

    Returns:
        Squared units of the features, a scalar.

    Raises:
        InputError: a weight is negative or not finite; features are not floating point.
        ShapeError: widths differ; features are not ``(n, d)``; the weights do not fit; n = 0.

    Source:
        Tang et al., "Distribution Shift Matters for Knowledge Distillation with Webly Collected Images", ICCV 2023
        (arXiv 2307.11469); the formula, not available to us, is the plain weighted mean.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(2, 1), torch.tensor([[1.0], [3.0]])
        >>> weighted_feature_alignment(student, teacher, torch.tensor([1.0, 1.0])).item()
        5.0
    """
    student, teacher = full_pair(student_feat, teacher_feat, _HERE)
    if student.ndim != 2 or teacher.ndim != 2 or student.shape[0] != teacher.shape[0] or student.shape[0] == 0:
        raise ShapeError(
            "features do not fit",
            where=_HERE,
            expected="student and teacher (n, d) with n >= 1",
            got=f"student {list(student.shape)}, teacher {list(teacher.shape)}",
        )
    if student.shape[1] != teacher.shape[1]:
        raise ShapeError(
            f"widths differ: student has {student.shape[1]} features, teacher {teacher.shape[1]}",
            where=_HERE,
            hint="Put the student's features through a projector to the teacher's width first.",
        )
    if list(weight.shape) != [student.shape[0]]:
        raise ShapeError("weights do not fit", where=_HERE, expected=f"[{student.shape[0]}]", got=list(weight.shape))
    weight = weight.detach().to(student)
    if not ((weight >= 0) & weight.isfinite()).all():
        raise InputError("a weight does not fit", where=_HERE, expected="finite, 0 or more", got=weight.min().item())
    counts = (weight > 0).unsqueeze(1)
    gap = student.masked_fill(~counts, 0) - teacher.masked_fill(~counts, 0)
    # By the largest weight first: weights near the smallest float would vanish beside the guard.
    weight = weight / torch.where(weight.max() > 0, weight.max(), 1)
    return (weight * gap.square().mean(1)).sum() / weight.sum().clamp_min(_LEAST)
