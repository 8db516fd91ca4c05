"""Final features of a teacher, each token freed of its own scale and shift, as the student's target."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from potstill.errors import ShapeError
from potstill.losses._common import (
    REDUCTIONS,
    Reduction,
    blank,
    check_choice,
    check_mask,
    check_positive,
    full_pair,
    reduce_rows,
    without_autocast,
)
from potstill.losses._tokens import kept_tokens

_HERE = "whitened_feature_loss"
_EPS = 1e-6


def whitened_feature_loss(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor,
    bias: Tensor,
    keep_ids: Tensor | None = None,
    beta: float = 1.0,
    *,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Smooth L1 between the student's projected tokens and the teacher's tokens after LayerNorm without weights.

    LayerNorm takes the few huge channels and the scale out of the teacher's features, which plain mean squared error
    would spend itself on. Made for the last layer of contrastive or supervised image encoders, and for a student that
    dropped some of the tokens. Where the student must stand in for the teacher inside a network, ``hint_mse`` keeps
    the scale.

    Args:
        student: The student's tokens, ``(B, n, D_s)``.
        teacher: The teacher's tokens, ``(B, N, D_t)``; no gradient flows into them.
        weight: Of the linear map to the teacher's width, ``(D_t, D_s)``; trained with the student.
        bias: Of that map, ``(D_t,)``.
        keep_ids: Which of the teacher's tokens the student kept, integers ``(B, n)``; None = all, n = N.
        beta: Difference at which the square turns into a line.
        mask: True at kept tokens that count, ``(B, n)``; None = all.
        reduction: "mean" over channels and the tokens that count, "sum" over tokens of the mean over channels, or
            "none" for that mean per token, ``(B, n)``, 0 at masked tokens.

    Returns:
        Without unit; a scalar unless ``reduction`` is "none".

    Raises:
        InputError: beta not above 0; keep_ids no integers or outside [0, N); unknown reduction; mask not bool.
        ShapeError: not three axes; B differs; weight or bias do not fit the widths; numbers of tokens differ without
            keep_ids; keep_ids or the mask do not fit.

    Source:
        Shi et al., "Hybrid Distillation", ICLR 2024 (arXiv 2306.15876), for the idea; the equation, not available to
        us, is that of feature distillation by smooth L1 on whitened features. The eps of LayerNorm is 1e-6.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[[1.0, 5.0]]])  # (-1, 1) after LayerNorm
        >>> round(whitened_feature_loss(torch.zeros(1, 1, 3), teacher, torch.zeros(2, 3), torch.zeros(2)).item(), 4)
        0.5
    """
    check_choice(reduction, REDUCTIONS, _HERE, "reduction")
    check_positive(beta, _HERE, "beta")
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[0] != teacher.shape[0]:
        raise ShapeError(
            "token features do not fit",
            where=_HERE,
            expected="student (B, n, D_s) and teacher (B, N, D_t)",
            got=f"student {list(student.shape)}, teacher {list(teacher.shape)}",
        )
    n, d_s, d_t = student.shape[1], student.shape[2], teacher.shape[2]
    if list(weight.shape) != [d_t, d_s] or list(bias.shape) != [d_t]:
        raise ShapeError(
            "the projection does not fit the widths",
            where=_HERE,
            expected=f"weight [{d_t}, {d_s}] and bias [{d_t}]",
            got=f"weight {list(weight.shape)}, bias {list(bias.shape)}",
        )
    check_mask(mask, student.shape[:2], _HERE, "(B, n)")
    student, teacher = full_pair(student, kept_tokens(teacher, keep_ids, n, _HERE), _HERE)
    student, teacher = blank(student, mask), blank(teacher, mask)
    with without_autocast(student):
        projected = F.linear(student, weight.to(student.dtype), bias.to(student.dtype))
        target = F.layer_norm(teacher, (d_t,), eps=_EPS)
    rows = F.smooth_l1_loss(projected, target, beta=beta, reduction="none").mean(-1)
    return reduce_rows(rows, mask, reduction)
