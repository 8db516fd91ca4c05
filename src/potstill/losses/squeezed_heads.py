"""Squeezing-Heads Distillation: neighbouring teacher heads are merged until there are as many as the student has."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from potstill.errors import ShapeError
from potstill.losses._attention import Maps, check_options, over_heads, over_samples
from potstill.losses._common import Reduction, without_autocast


def squeezing_heads(
    student_attn: Tensor,
    teacher_attn: Tensor,
    *,
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    teacher_values: Tensor | None = None,
    head_reduction: Literal["sum", "mean"] = "sum",
    eps: float = 1e-12,
    reduction: Reduction = "mean",
) -> Tensor:
    """Merge the teacher's heads two by two without training anything, then pair them with the student's, by KL.

    A rival of ``amad_loss`` for a student with fewer heads. Two neighbours p and q become α A_p + (1 - α) A_q, one α in
    [0, 1] per sample, so that what both write into the hidden state, A_p X_p + A_q X_q, is best kept by the one map on
    X_p + X_q: with D = A_p - A_q, α = <D X_p, D (X_p + X_q)> / ||D (X_p + X_q)||². Merged heads write X_p + X_q from
    then on. Neighbours are those by number, so the order of the teacher's heads matters.

    Args:
        student_attn: Student attention probabilities before dropout, ``(B, Hs, Q, K)``.
        teacher_attn: Teacher attention probabilities, ``(B, Ht, Q, K)``, Ht at least Hs; no gradient flows into them.
        query_mask: True at query rows that count, ``(B, Q)``; None = all.
        key_mask: True at keys that count, ``(B, K)``; None = all. Rows are divided by what is left of their sum.
        teacher_values: X, what each teacher head writes for each key: its values times its part of the output
            projection, ``(B, Ht, K, D)``. None = α is 1/2, the best where nothing is known of them.
        head_reduction: "sum" over the student's heads, or "mean".
        eps: Floor of a probability inside the logarithm.
        reduction: "mean" over the samples, where one without a query that counts enters with 0; "sum"; or "none" for
            ``(B,)``.

    Returns:
        Nats, mean over the query rows that count; a scalar unless ``reduction`` is "none".

    Raises:
        InputError: as ``amad_loss``.
        ShapeError: as ``amad_loss``; the teacher has fewer heads than the student; teacher_values do not fit.

    Source:
        Bing, Li, Liang, arXiv 2502.07436, after its abstract, its open reviews and the answers to them: a convex
        combination of two maps by a closed form, neighbours merged in rounds (9 heads, 5, 3), a last odd head kept, KL.
        Reconstructed: the closed form and its limits; a round that would merge too many heads merges only the first
        pairs; the sum over heads. Left out: the softening of the maps by a temperature.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[[[1.0, 0.0]], [[0.5, 0.5]]]])
        >>> round(squeezing_heads(torch.tensor([[[[0.5, 0.5]]]]), teacher).item(), 6)
        0.130812
    """
    check_options(reduction, head_reduction, eps, "squeezing_heads")
    maps = Maps(student_attn, teacher_attn, query_mask, key_mask, "squeezing_heads")
    teacher, H_s = maps.teacher, maps.student.shape[1]
    B, H_t, _, K = teacher.shape
    if H_t < H_s:
        raise ShapeError(
            "the teacher has fewer heads than the student",
            where="squeezing_heads",
            expected=f"at least {H_s}",
            got=H_t,
            hint="amad_loss takes any numbers of heads.",
        )
    if teacher_values is not None:
        if teacher_values.ndim != 4 or teacher_values.shape[:3] != (B, H_t, K):
            raise ShapeError(
                "teacher_values do not fit",
                where="squeezing_heads",
                expected=f"(B, Ht, K, D) = [{B}, {H_t}, {K}, D]",
                got=list(teacher_values.shape),
            )
        teacher_values = teacher_values.detach().to(teacher.dtype)
        if key_mask is not None:
            teacher_values = teacher_values.masked_fill(~key_mask[:, None, :, None], 0)
    with without_autocast(teacher):
        while teacher.shape[1] > H_s:
            teacher, teacher_values = _one_round(teacher, teacher_values, H_s)
    values = maps.mean_over_queries(maps.kl(teacher, maps.student, eps))
    return over_samples(over_heads(values, head_reduction), reduction)


def _one_round(maps: Tensor, X: Tensor | None, wanted: int) -> tuple[Tensor, Tensor | None]:
    """Merge neighbours from the first on, but no more than it takes to have ``wanted`` heads."""
    H = maps.shape[1]
    pairs = min(H // 2, H - wanted)
    p, q, kept = maps[:, : 2 * pairs : 2], maps[:, 1 : 2 * pairs : 2], maps[:, 2 * pairs :]
    if X is None:
        return torch.cat([(p + q) / 2, kept], dim=1), None
    X_p, X_q = X[:, : 2 * pairs : 2], X[:, 1 : 2 * pairs : 2]
    D = p - q
    moved, both = D @ X_p, D @ (X_p + X_q)  # (B, pairs, Q, D)
    size = both.square().sum((-1, -2), keepdim=True)
    # Where both heads look alike, or write nothing, any α will do.
    alpha = torch.where(size > 0, (moved * both).sum((-1, -2), keepdim=True) / size, 0.5).clamp(0, 1)
    merged = alpha * p + (1 - alpha) * q
    return torch.cat([merged, kept], dim=1), torch.cat([X_p + X_q, X[:, 2 * pairs :]], dim=1)
