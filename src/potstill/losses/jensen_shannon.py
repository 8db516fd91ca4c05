"""Generalised Jensen-Shannon divergence between forward and reverse KL."""

from __future__ import annotations

from torch import Tensor

from potstill.losses._common import (
    REDUCTIONS,
    Reduction,
    by_rows,
    check_choice,
    check_positive,
    check_unit,
    jsd_rows,
    log_probs,
    logit_rows,
    reduce_rows,
)


@by_rows
def generalized_jsd(
    student: Tensor,
    teacher: Tensor,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    shared_vocab: int | None = None,
) -> Tensor:
    """Compare both distributions with their mixture m = beta p + (1 - beta) q, p the teacher's and q the student's.

    beta KL(p || m) + (1 - beta) KL(q || m). Bounded, so one wild token cannot dominate a batch; the usual loss on text
    the student wrote itself. Its gradient is weak while the student is far from the teacher: start elsewhere, or lower
    ``beta``.

    Args:
        student: Student logits, ``(..., V)``.
        teacher: Teacher logits, ``(..., V)``; no gradient flows into them.
        beta: Weight of the teacher in the mixture, in [0, 1]. 0 returns forward KL and 1 reverse KL; near either end
            the value tends to 0, and the value divided by beta (or by 1 - beta) tends to that KL.
        temperature: T; both logits are divided by it. There is no T² here.
        mask: True at positions that count, ``(...)``; None = all.
        reduction: "mean" over the positions that count, "sum", or "none" for ``(...)`` with 0 at masked positions.
        shared_vocab: Cut both vocabularies to the first n classes and renormalise.

    Returns:
        Nats, at most ln 2 for ``beta`` = 0.5; a scalar unless ``reduction`` is "none".

    Raises:
        InputError: beta outside [0, 1]; temperature not above 0; unknown reduction; mask not bool.
        ShapeError: vocabularies, leading shapes or the mask do not fit.

    Source:
        Agarwal et al., "On-Policy Distillation of Language Models" (GKD), ICLR 2024, equation 1. The mixture is formed
        from log-probabilities and is not detached.

    Example:
        >>> import math, torch
        >>> teacher, student = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
        >>> round(generalized_jsd(student, teacher, beta=0.5).item(), 6)
        0.033822
    """
    check_choice(reduction, REDUCTIONS, "generalized_jsd", "reduction")
    check_positive(temperature, "generalized_jsd", "temperature")
    check_unit(beta, "generalized_jsd", "beta")
    student, teacher, mask = logit_rows(student, teacher, mask, shared_vocab, reduction, "generalized_jsd")
    log_p, log_q = log_probs(teacher, temperature), log_probs(student, temperature)
    return reduce_rows(jsd_rows(log_p, log_q, beta), mask, reduction)
