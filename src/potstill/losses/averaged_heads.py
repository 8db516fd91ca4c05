"""Attention distillation that forgets the heads: the mean map of one model against that of the other."""

from __future__ import annotations

from torch import Tensor

from potstill.losses._attention import Maps, check_options, over_samples
from potstill.losses._common import Reduction


def head_mean(
    student_attn: Tensor,
    teacher_attn: Tensor,
    *,
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    eps: float = 1e-12,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compare the mean over heads of the maps, by KL(mean of the teacher || mean of the student).

    The simplest rival of ``amad_loss`` that takes any numbers of heads. It says where a layer looks, not which head
    does: heads that look at different places become one blur.

    Args:
        student_attn: Student attention probabilities before dropout, ``(B, Hs, Q, K)``.
        teacher_attn: Teacher attention probabilities, ``(B, Ht, Q, K)``; no gradient flows into them.
        query_mask: True at query rows that count, ``(B, Q)``; None = all.
        key_mask: True at keys that count, ``(B, K)``; None = all. Rows are divided by what is left of their sum.
        eps: Floor of a probability inside the logarithm.
        reduction: "mean" over the samples, where one without a query that counts enters with 0; "sum"; or "none" for
            ``(B,)``.

    Returns:
        Nats, mean over the query rows that count; a scalar unless ``reduction`` is "none".

    Raises:
        InputError: as ``amad_loss``.
        ShapeError: as ``amad_loss``.

    Source:
        A common baseline without a paper of its own.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[[[1.0, 0.0]], [[0.5, 0.5]]]])
        >>> round(head_mean(torch.tensor([[[[0.5, 0.5]]]]), teacher).item(), 6)
        0.130812
    """
    check_options(reduction, "sum", eps, "head_mean")
    maps = Maps(student_attn, teacher_attn, query_mask, key_mask, "head_mean")
    values = maps.mean_over_queries(maps.kl(maps.teacher.mean(1), maps.student.mean(1), eps)[:, None])
    return over_samples(values[:, 0], reduction)
