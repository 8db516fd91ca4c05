"""Total variation distance between class distributions."""

from __future__ import annotations

from torch import Tensor

from potstill.losses._common import (
    REDUCTIONS,
    Reduction,
    by_rows,
    check_choice,
    check_positive,
    log_probs,
    logit_rows,
    reduce_rows,
)


@by_rows
def tv_distance(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    shared_vocab: int | None = None,
) -> Tensor:
    """Compare softened class distributions by half the sum of absolute differences.

    It is the share of draws on which an ideal coupling of student and teacher would disagree, hence the number to watch
    for speculative decoding. As a training loss it is blind to how wrong a rare class is, and where both agree on a
    class its gradient there is 0.

    Args:
        student: Student logits, ``(..., V)``.
        teacher: Teacher logits, ``(..., V)``; no gradient flows into them.
        temperature: T; both logits are divided by it. There is no T² here.
        mask: True at positions that count, ``(...)``; None = all.
        reduction: "mean" over the positions that count, "sum", or "none" for ``(...)`` with 0 at masked positions.
        shared_vocab: Cut both vocabularies to the first n classes and renormalise.

    Returns:
        A number in [0, 1] without unit; a scalar unless ``reduction`` is "none".

    Raises:
        InputError: temperature not above 0; unknown reduction; mask not bool.
        ShapeError: vocabularies, leading shapes or the mask do not fit.

    Source:
        Textbook definition; among the divergences compared by Wen et al., "f-Divergence Minimization for Sequence-Level
        Knowledge Distillation", ACL 2023.

    Example:
        >>> import math, torch
        >>> teacher, student = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
        >>> round(tv_distance(student, teacher).item(), 6)
        0.25
    """
    check_choice(reduction, REDUCTIONS, "tv_distance", "reduction")
    check_positive(temperature, "tv_distance", "temperature")
    student, teacher, mask = logit_rows(student, teacher, mask, shared_vocab, reduction, "tv_distance")
    p, q = log_probs(teacher, temperature).exp(), log_probs(student, temperature).exp()
    return reduce_rows(0.5 * (p - q).abs().sum(-1), mask, reduction)
