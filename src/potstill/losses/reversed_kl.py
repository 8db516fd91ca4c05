"""Reverse KL, for students that should commit to what the teacher finds likely."""

from __future__ import annotations

from torch import Tensor

from potstill.losses._common import (
    REDUCTIONS,
    Reduction,
    by_rows,
    check_choice,
    check_positive,
    kl_rows,
    log_probs,
    logit_rows,
    reduce_rows,
)


@by_rows
def reverse_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    scale_by_t2: bool = False,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    shared_vocab: int | None = None,
) -> Tensor:
    """Compare softened class distributions by KL(student || teacher).

    Used for text generation, mostly on the student's own samples: it punishes mass where the teacher has none, so the
    student may drop modes but writes nothing odd. Not a good choice when every class the teacher considers must stay
    reachable, as in calibration.

    Args:
        student: Student logits, ``(..., V)``.
        teacher: Teacher logits, ``(..., V)``; no gradient flows into them.
        temperature: T; both logits are divided by it.
        scale_by_t2: Multiply by T². Off by default: reverse KL is used at T = 1.
        mask: True at positions that count, ``(...)``; None = all.
        reduction: "mean" over the positions that count, "sum", or "none" for ``(...)`` with 0 at masked positions.
        shared_vocab: Cut both vocabularies to the first n classes and renormalise.

    Returns:
        Nats (times T² if ``scale_by_t2``); a scalar unless ``reduction`` is "none".

    Raises:
        InputError: temperature not above 0; unknown reduction; mask not bool.
        ShapeError: vocabularies, leading shapes or the mask do not fit.

    Source:
        Gu et al., "MiniLLM", ICLR 2024, equation 1. The expectation over the vocabulary is exact here, not sampled, and
        the gradient flows through both places where the student's probability stands.

    Example:
        >>> import math, torch
        >>> teacher, student = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
        >>> round(reverse_kl(student, teacher).item(), 6)
        0.143841
    """
    check_choice(reduction, REDUCTIONS, "reverse_kl", "reduction")
    check_positive(temperature, "reverse_kl", "temperature")
    student, teacher, mask = logit_rows(student, teacher, mask, shared_vocab, reduction, "reverse_kl")
    rows = kl_rows(log_probs(student, temperature), log_probs(teacher, temperature))
    return reduce_rows(rows * temperature**2 if scale_by_t2 else rows, mask, reduction)
