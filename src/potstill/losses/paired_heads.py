"""The usual way to distil attention: student head j learns from one teacher head."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from potstill.errors import ShapeError
from potstill.losses._attention import Maps, check_options, over_heads, over_samples
from potstill.losses._common import Reduction, check_choice

Choice = Literal["first", "spread"]


def one_to_one_heads(
    student_attn: Tensor,
    teacher_attn: Tensor,
    *,
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    choice: Choice = "first",
    head_reduction: Literal["sum", "mean"] = "sum",
    eps: float = 1e-12,
    reduction: Reduction = "mean",
) -> Tensor:
    """Pair head j of the student with one head of the teacher, by KL(teacher || student); other heads are dropped.

    The rival of ``amad_loss`` for unequal heads, and ``attention_kl`` for equal ones. The order of heads means nothing,
    so which teacher heads are dropped is chance: two teachers that differ only in the order of their heads give
    different students.

    Args:
        student_attn: Student attention probabilities before dropout, ``(B, Hs, Q, K)``.
        teacher_attn: Teacher attention probabilities, ``(B, Ht, Q, K)``, Ht at least Hs; no gradient flows into them.
        query_mask: True at query rows that count, ``(B, Q)``; None = all.
        key_mask: True at keys that count, ``(B, K)``; None = all. Rows are divided by what is left of their sum.
        choice: "first", teacher heads 0 to Hs - 1; "spread", heads floor(j Ht / Hs).
        head_reduction: "sum" over the student's heads, or "mean".
        eps: Floor of a probability inside the logarithm.
        reduction: "mean" over the samples, where one without a query that counts enters with 0; "sum"; or "none" for
            ``(B,)``.

    Returns:
        Nats, mean over the query rows that count; a scalar unless ``reduction`` is "none".

    Raises:
        InputError: as ``amad_loss``; unknown choice.
        ShapeError: as ``amad_loss``; the teacher has fewer heads than the student.

    Source:
        The baseline of Zhao et al., "No Head Left Behind", AAAI 2024; which heads are kept is not said there.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[[[0.75, 0.25]], [[0.25, 0.75]]]])
        >>> round(one_to_one_heads(torch.tensor([[[[0.5, 0.5]]]]), teacher).item(), 6)
        0.130812
    """
    check_options(reduction, head_reduction, eps, "one_to_one_heads")
    check_choice(choice, ("first", "spread"), "one_to_one_heads", "choice")
    maps = Maps(student_attn, teacher_attn, query_mask, key_mask, "one_to_one_heads")
    H_s, H_t = maps.student.shape[1], maps.teacher.shape[1]
    if H_t < H_s:
        raise ShapeError(
            "the teacher has fewer heads than the student",
            where="one_to_one_heads",
            expected=f"at least {H_s}",
            got=H_t,
            hint="amad_loss takes any numbers of heads.",
        )
    kept = list(range(H_s)) if choice == "first" else [j * H_t // H_s for j in range(H_s)]
    values = maps.mean_over_queries(maps.kl(maps.teacher[:, kept], maps.student, eps))
    return over_samples(over_heads(values, head_reduction), reduction)
