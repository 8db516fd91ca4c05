"""MiniLM relations: how the tokens of a sequence relate, head by head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import (
    REDUCTIONS,
    Reduction,
    blank,
    check_choice,
    check_mask,
    full_pair,
    kl_rows,
    reduce_rows,
    without_autocast,
)


def minilm_relation(
    student: Tensor, teacher: Tensor, R: int, mask: Tensor | None = None, *, reduction: Reduction = "mean"
) -> Tensor:
    """Compare scaled dot products between tokens, split into R relation heads, by KL(teacher || student).

    Works for any pair of widths and head counts and needs no attention maps: feed it the raw queries (then keys, then
    values) of one layer of each model and average the three for MiniLMv2; values alone with R = heads plus
    ``attention_kl`` is MiniLM v1. It fixes relations up to a rotation inside each head, not the features themselves, so
    it belongs on one late layer, with the layers below free.

    Args:
        student: Student queries, keys or values before the split into heads, ``(B, L, d_s)``.
        teacher: The same of the teacher, ``(B, L, d_t)``; no gradient flows into them.
        R: Number of relation heads; divides both widths. 48 for a base teacher, 64 for a large one.
        mask: True at tokens that count, ``(B, L)``; the others are neither queries nor keys. None = all.
        reduction: "mean" over samples, "sum", or "none" for ``(B,)``. The value of a sample is always the mean over
            its heads and its tokens that count; a sample without any does not count.

    Returns:
        Nats; a scalar unless ``reduction`` is "none".

    Raises:
        InputError: R below 1 or not a divisor of a width; unknown reduction; mask not bool.
        ShapeError: not three axes; B or L differ; the mask does not fit.

    Source:
        Wang et al., "MiniLMv2", ACL Findings 2021, equations 5 and 6; "MiniLM", NeurIPS 2020, equation 5, for values.

    Example:
        >>> import torch
        >>> x = torch.arange(24.0).reshape(1, 3, 8) / 10
        >>> minilm_relation(x, x, 4).item()
        0.0
    """
    check_choice(reduction, REDUCTIONS, "minilm_relation", "reduction")
    student, teacher = full_pair(student, teacher, "minilm_relation")
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[:2] != teacher.shape[:2]:
        raise ShapeError(
            "token features do not fit",
            where="minilm_relation",
            expected="student (B, L, d_s) and teacher (B, L, d_t)",
            got=f"student {list(student.shape)}, teacher {list(teacher.shape)}",
        )
    d_s, d_t = student.shape[-1], teacher.shape[-1]
    if R < 1 or d_s % R or d_t % R:
        raise InputError(
            "R does not split the widths evenly",
            where="minilm_relation",
            expected=f"a divisor of {d_s} (student) and of {d_t} (teacher)",
            got=R,
        )
    check_mask(mask, student.shape[:2], "minilm_relation", "(B, L)")
    log_q = _log_relation(blank(student, mask), R, mask)
    rows = kl_rows(_log_relation(blank(teacher, mask), R, mask), log_q).mean(1)  # (B, L)
    if mask is None:
        return reduce_rows(rows.sum(1) / max(1, rows.shape[1]), None, reduction)
    per_sample = rows.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp_min(1)
    return reduce_rows(per_sample, mask.any(1), reduction)


def _log_relation(x: Tensor, R: int, mask: Tensor | None) -> Tensor:
    """Return log softmax over keys that count of x x' / sqrt(d / R), ``(B, R, L, L)``."""
    B, L, D = x.shape
    x = x.reshape(B, L, R, D // R).transpose(1, 2)
    with without_autocast(x):
        scores = x @ x.transpose(-1, -2) / (D // R) ** 0.5
    if mask is not None:
        # In a sample without any token every key stays: a softmax over nothing is NaN.
        hidden = ~mask & mask.any(1, keepdim=True)
        scores = scores.masked_fill(hidden[:, None, None, :], -torch.inf)
    return F.log_softmax(scores, dim=-1)
