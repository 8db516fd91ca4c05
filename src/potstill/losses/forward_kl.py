"""Forward KL, the classic distillation loss."""

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
def kd_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    scale_by_t2: bool = True,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    shared_vocab: int | None = None,
) -> Tensor:
    """Compare softened class distributions by KL(teacher || student).

    The first thing to try. It makes the student cover everything the teacher finds plausible; a student much too small
    for that spreads its mass over text no one would write, and ``reverse_kl`` or ``generalized_jsd`` may serve better.
    A mixed objective adds its own cross-entropy at temperature 1 outside.

    Args:
        student: Student logits, ``(..., V)``.
        teacher: Teacher logits, ``(..., V)``; no gradient flows into them.
        temperature: T; both logits are divided by it. Usual: 4 for images, 1 to 2 for text.
        scale_by_t2: Multiply by T², which keeps the size of the gradient when T changes.
        mask: True at positions that count, ``(...)``; None = all.
        reduction: "mean" over the positions that count, "sum", or "none" for ``(...)`` with 0 at masked positions.
        shared_vocab: Cut both vocabularies to the first n classes and renormalise.

    Returns:
        Nats (times T² if ``scale_by_t2``); a scalar unless ``reduction`` is "none".

    Raises:
        InputError: temperature not above 0; unknown reduction; mask not bool.
        ShapeError: vocabularies, leading shapes or the mask do not fit.

    Source:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2. The mean runs over every
        position that counts, not over the first axis alone.

    Example:
        >>> import math, torch
        >>> teacher, student = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
        >>> round(kd_kl(student, teacher).item(), 6)
        0.130812
    """
    check_choice(reduction, REDUCTIONS, "kd_kl", "reduction")
    check_positive(temperature, "kd_kl", "temperature")
    student, teacher, mask = logit_rows(student, teacher, mask, shared_vocab, reduction, "kd_kl")
    rows = kl_rows(log_probs(teacher, temperature), log_probs(student, temperature))
    return reduce_rows(rows * temperature**2 if scale_by_t2 else rows, mask, reduction)
