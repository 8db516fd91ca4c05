"""Attention transfer: where a convolutional feature map is active."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import REDUCTIONS, Reduction, check_choice, check_mask, full_pair, reduce_rows


def attention_transfer(
    student: Tensor,
    teacher: Tensor,
    *,
    p: float = 2.0,
    mode: Literal["mean_sq", "l2"] = "mean_sq",
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Ask that student and teacher feature maps are active at the same places.

    Averages |f|^p over channels and compares the normalised maps, so channels need not agree in number or meaning and
    no projector is trained. It says nothing about what the channels encode, and is meant for convolutional maps; for
    the attention of transformers see ``attention_kl`` and ``minilm_relation``.

    Args:
        student: Student feature map, ``(B, C_s, H, W)``.
        teacher: Teacher feature map, ``(B, C_t, H, W)``; no gradient flows into it. If sizes differ, both maps are
            average-pooled to the smaller height and the smaller width first.
        p: Power of the activation, at least 1; larger looks at the peaks only.
        mode: "mean_sq", the mean of squared differences over the places, or "l2", the norm of the difference.
        mask: True at samples that count, ``(B,)``; None = all.
        reduction: "mean" over the samples that count, "sum", or "none" for ``(B,)``.

    Returns:
        A number without unit, small by nature ("mean_sq" is at most 4 / (H W): hence the weight of 1000 in the
        literature); a scalar unless ``reduction`` is "none".

    Raises:
        InputError: p below 1; unknown mode or reduction; mask not bool.
        ShapeError: not four axes; numbers of samples differ; the mask does not fit.

    Source:
        Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017: "l2" is equation 2, "mean_sq" the
        authors' code. The guard of the norm is the smallest number instead of 1e-12, so that faint maps scale too.

    Example:
        >>> import torch
        >>> f = torch.arange(8.0).reshape(1, 2, 2, 2)
        >>> attention_transfer(3 * f.flip(1), f).item() < 1e-12
        True
    """
    check_choice(reduction, REDUCTIONS, "attention_transfer", "reduction")
    check_choice(mode, ("mean_sq", "l2"), "attention_transfer", "mode")
    if not p >= 1:
        raise InputError("p does not fit", where="attention_transfer", expected="a number of at least 1", got=p)
    student, teacher = full_pair(student, teacher, "attention_transfer")
    if student.ndim != 4 or teacher.ndim != 4 or student.shape[0] != teacher.shape[0]:
        raise ShapeError(
            "feature maps do not fit",
            where="attention_transfer",
            expected="student (B, C_s, H, W) and teacher (B, C_t, H, W)",
            got=f"student {list(student.shape)}, teacher {list(teacher.shape)}",
        )
    check_mask(mask, student.shape[:1], "attention_transfer", "(B,)")
    size = [min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:])]
    maps = []
    for f in (student, teacher):
        if mask is not None:
            f = f.masked_fill(~mask[:, None, None, None], 0)
        if list(f.shape[2:]) != size:
            f = F.adaptive_avg_pool2d(f, size)
        maps.append(F.normalize(f.abs().pow(p).mean(1).flatten(1), eps=torch.finfo(f.dtype).tiny))
    gap = maps[0] - maps[1]
    rows = gap.square().mean(1) if mode == "mean_sq" else torch.linalg.vector_norm(gap, dim=1)
    return reduce_rows(rows, mask, reduction)
