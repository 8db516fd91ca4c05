"""KL between attention probabilities, the first half of MiniLM."""

from __future__ import annotations

from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import REDUCTIONS, Reduction, blank, check_choice, check_mask, full_pair, reduce_rows


def attention_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    eps: float = 1e-12,
) -> Tensor:
    """Ask that each student head attends where the same teacher head attends, by KL(teacher || student).

    With ``minilm_relation`` on the values this is MiniLM v1. Needs the probabilities themselves, before dropout, and as
    many heads in both models; where head counts differ use ``amad_loss``, and where maps cannot be had
    ``minilm_relation`` on queries, keys and values.

    Args:
        student: Student attention probabilities, ``(B, H, Q, K)``, rows sum to 1, keys out of reach have 0.
        teacher: Teacher attention probabilities of the same shape; no gradient flows into them.
        mask: True at query rows that count, ``(B, Q)`` for all heads alike or ``(B, H, Q)``; None = all.
        reduction: "mean" over the rows that count in all samples and heads, "sum", or "none" for ``(B, H, Q)``.
        eps: Floor of a probability inside the logarithm.

    Returns:
        Nats; a scalar unless ``reduction`` is "none".

    Raises:
        InputError: negative entries (scores instead of probabilities); unknown reduction; mask not bool.
        ShapeError: not four axes; shapes differ, heads included; the mask does not fit.

    Source:
        Wang et al., "MiniLM", NeurIPS 2020, equation 3. Rows of padding do not count; the floor ``eps`` is ours.

    Example:
        >>> import torch
        >>> teacher, student = torch.tensor([[[[0.75, 0.25]]]]), torch.tensor([[[[0.5, 0.5]]]])
        >>> round(attention_kl(student, teacher).item(), 6)
        0.130812
    """
    check_choice(reduction, REDUCTIONS, "attention_kl", "reduction")
    student, teacher = full_pair(student, teacher, "attention_kl")
    if student.ndim != 4 or student.shape != teacher.shape:
        raise ShapeError(
            "attention maps differ in shape",
            where="attention_kl",
            expected="student and teacher (B, H, Q, K)",
            got=f"student {list(student.shape)}, teacher {list(teacher.shape)}",
            hint="Unequal numbers of heads need amad_loss, or minilm_relation, which does without maps.",
        )
    B, H, Q, _ = student.shape
    if mask is not None and mask.shape == (B, Q):
        mask = mask[:, None].expand(B, H, Q)
    check_mask(mask, student.shape[:3], "attention_kl", "(B, Q) or (B, H, Q)")
    student, teacher = blank(student, mask), blank(teacher, mask)
    for side, probs in (("student", student), ("teacher", teacher)):
        if (probs < 0).any():
            raise InputError(
                f"{side} has negative entries",
                where="attention_kl",
                expected="probabilities",
                hint="Apply softmax first.",
            )
    rows = (teacher * (teacher.clamp_min(eps).log() - student.clamp_min(eps).log())).sum(-1)
    return reduce_rows(rows, mask, reduction)
