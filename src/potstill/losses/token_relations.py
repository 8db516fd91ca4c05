"""Relations between the tokens a student kept, against a teacher that saw them all."""

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
from potstill.losses._tokens import kept_tokens

_HERE = "token_relation_loss"


def token_relation_loss(
    student_q: Tensor,
    student_k: Tensor,
    student_v: Tensor,
    teacher_q: Tensor,
    teacher_k: Tensor,
    teacher_v: Tensor,
    relation_heads: int,
    keep_ids: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Ask that the student's kept tokens attend to one another, and resemble one another, as the teacher's do.

    Half KL(teacher || student) of softmax(QK' / sqrt(d)), half of softmax(VV' / sqrt(d)), in R relation heads of width
    d = D / R. Hands on how a masked-image teacher relates patches, without its features; any widths and head counts
    go. Put it on one layer in the student's later half; where the student must reproduce features, use
    ``whitened_feature_loss`` or ``hint_mse``.

    Args:
        student_q: Student queries after their projection, before the split into heads, ``(B, n, D_s)``.
        student_k: Student keys, likewise.
        student_v: Student values, likewise.
        teacher_q: Teacher queries of all tokens, ``(B, N, D_t)``; no gradient flows into them.
        teacher_k: Teacher keys, likewise.
        teacher_v: Teacher values, likewise.
        relation_heads: R; divides both widths.
        keep_ids: Which of the teacher's tokens the student kept, integers ``(B, n)``; None = all, n = N. The teacher's
            rows are gathered first, so its relations, too, sum to 1 over what was kept.
        mask: True at kept tokens that count, ``(B, n)``; the others are neither queries nor keys. None = all.
        reduction: "mean" over samples, "sum", or "none" for ``(B,)``. The value of a sample is always the mean over
            its heads and its tokens that count; a sample without any does not count.

    Returns:
        Nats; a scalar unless ``reduction`` is "none".

    Raises:
        InputError: relation_heads below 1 or not a divisor of a width; keep_ids no integers or outside [0, N); unknown
            reduction; mask not bool.
        ShapeError: not three axes; queries, keys and values of one side differ in shape; B differs; numbers of tokens
            differ without keep_ids; keep_ids or the mask do not fit.

    Source:
        Shi et al., "Hybrid Distillation", ICLR 2024 (arXiv 2306.15876), for the idea. Its equations were not
        available to us: relations and their KL are those of Wang et al., "MiniLMv2", ACL Findings 2021.

    Example:
        >>> import torch
        >>> q, k, v = torch.arange(36.0).reshape(3, 1, 3, 4).div(10)
        >>> token_relation_loss(q, k, v, q, k, v, relation_heads=2).item()
        0.0
    """
    check_choice(reduction, REDUCTIONS, _HERE, "reduction")
    student = _one_shape([student_q, student_k, student_v], "student")
    teacher = _one_shape([teacher_q, teacher_k, teacher_v], "teacher")
    n, d_s = student[0].shape[1:]
    if student[0].shape[0] != teacher[0].shape[0]:
        raise ShapeError(
            "student and teacher have different batches",
            where=_HERE,
            expected=f"teacher ({student[0].shape[0]}, N, D_t)",
            got=list(teacher[0].shape),
        )
    d_t, R = teacher[0].shape[-1], relation_heads
    if isinstance(R, bool) or not isinstance(R, int) or R < 1 or d_s % R or d_t % R:
        raise InputError(
            "relation_heads do not split the widths evenly",
            where=_HERE,
            expected=f"a divisor of {d_s} (student) and of {d_t} (teacher)",
            got=R,
        )
    check_mask(mask, student[0].shape[:2], _HERE, "(B, n)")
    pairs = [full_pair(s, kept_tokens(t, keep_ids, n, _HERE), _HERE) for s, t in zip(student, teacher)]
    (q_s, q_t), (k_s, k_t), (v_s, v_t) = [(blank(s, mask), blank(t, mask)) for s, t in pairs]
    attending = kl_rows(_log_relation(q_t, k_t, R, mask), _log_relation(q_s, k_s, R, mask))
    resembling = kl_rows(_log_relation(v_t, v_t, R, mask), _log_relation(v_s, v_s, R, mask))
    rows = (attending + resembling).mean(1) / 2  # (B, n)
    if mask is None:
        return reduce_rows(rows.sum(1) / max(1, n), None, reduction)
    per_sample = rows.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp_min(1)
    return reduce_rows(per_sample, mask.any(1), reduction)


def _one_shape(qkv: list[Tensor], side: str) -> list[Tensor]:
    shapes = [list(x.shape) for x in qkv]
    if qkv[0].ndim != 3 or shapes[0] != shapes[1] or shapes[0] != shapes[2]:
        raise ShapeError(
            f"queries, keys and values of the {side} do not fit",
            where=_HERE,
            expected="three tensors (B, tokens, D) of one shape",
            got=" and ".join(map(str, shapes)),
        )
    return qkv


def _log_relation(a: Tensor, b: Tensor, R: int, mask: Tensor | None) -> Tensor:
    """Return log softmax over the keys that count of a b' / sqrt(D / R), ``(B, R, n, n)``."""
    B, n, D = a.shape
    a, b = (x.reshape(B, n, R, D // R).transpose(1, 2) for x in (a, b))
    with without_autocast(a):
        scores = a @ b.transpose(-1, -2) / (D // R) ** 0.5
    if mask is not None:
        # In a sample without any token every key stays: a softmax over nothing is NaN.
        hidden = ~mask & mask.any(1, keepdim=True)
        scores = scores.masked_fill(hidden[:, None, None, :], -torch.inf)
    return F.log_softmax(scores, dim=-1)
