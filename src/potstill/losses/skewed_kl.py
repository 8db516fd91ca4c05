"""Skew KL and skew reverse KL: one side is mixed into the other, so that no word costs without bound."""

from __future__ import annotations

from torch import Tensor

from potstill.errors import InputError
from potstill.losses._common import (
    REDUCTIONS,
    Reduction,
    by_rows,
    check_choice,
    check_positive,
    kl_rows,
    log_mixture,
    log_probs,
    logit_rows,
    reduce_rows,
)


@by_rows
def skew_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    alpha: float = 0.1,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    shared_vocab: int | None = None,
) -> Tensor:
    """Compare softened class distributions by KL(p || alpha p + (1 - alpha) q), p the teacher's and q the student's.

    Forward KL whose value is at most -log alpha and whose gradient stays small where the student has next to no mass:
    for students far from the teacher, and for text the student wrote. Where forward KL trains well it gains nothing;
    its gradient is smaller by 1 - alpha near the optimum.

    Args:
        student: Student logits, ``(..., V)``.
        teacher: Teacher logits, ``(..., V)``; no gradient flows into them.
        alpha: Share of the teacher in the mixture, in [0, 1). 0 is ``kd_kl`` without T².
        temperature: T; both logits are divided by it. There is no T² here.
        mask: True at positions that count, ``(...)``; None = all.
        reduction: "mean" over the positions that count, "sum", or "none" for ``(...)`` with 0 at masked positions.
        shared_vocab: Cut both vocabularies to the first n classes and renormalise.

    Returns:
        Nats; a scalar unless ``reduction`` is "none".

    Raises:
        InputError: alpha outside [0, 1); temperature not above 0; unknown reduction; mask not bool.
        ShapeError: vocabularies, leading shapes or the mask do not fit.

    Source:
        Ko et al., "DistiLLM: Towards Streamlined Distillation for Large Language Models", ICML 2024, equation 3. The
        gradient flows through the mixture.

    Example:
        >>> import math, torch
        >>> teacher, student = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
        >>> round(skew_kl(student, teacher, alpha=0.1).item(), 6)
        0.107043
    """
    log_p, log_q, mask = _checked(student, teacher, alpha, temperature, mask, reduction, shared_vocab, "skew_kl")
    return reduce_rows(kl_rows(log_p, log_mixture(log_p, log_q, alpha) if alpha else log_q), mask, reduction)


@by_rows
def skew_reverse_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    alpha: float = 0.1,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    shared_vocab: int | None = None,
) -> Tensor:
    """Compare softened class distributions by KL(q || alpha q + (1 - alpha) p), p the teacher's and q the student's.

    Reverse KL without its blow-up where the teacher has next to no mass: a word the teacher never writes costs at most
    -log alpha. DistiLLM uses it on the student's own samples. It does not make the student cover all the teacher finds
    plausible; that is what ``skew_kl`` is for.

    Args:
        student: Student logits, ``(..., V)``.
        teacher: Teacher logits, ``(..., V)``; no gradient flows into them.
        alpha: Share of the student in the mixture, in [0, 1). 0 is ``reverse_kl``.
        temperature: T; both logits are divided by it.
        mask: True at positions that count, ``(...)``; None = all.
        reduction: "mean" over the positions that count, "sum", or "none" for ``(...)`` with 0 at masked positions.
        shared_vocab: Cut both vocabularies to the first n classes and renormalise.

    Returns:
        Nats; a scalar unless ``reduction`` is "none".

    Raises:
        InputError: alpha outside [0, 1); temperature not above 0; unknown reduction; mask not bool.
        ShapeError: vocabularies, leading shapes or the mask do not fit.

    Source:
        Ko et al., "DistiLLM", ICML 2024, section 3.1, skew reverse KL. The gradient flows through both places where
        the student's probability stands.

    Example:
        >>> import math, torch
        >>> teacher, student = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
        >>> round(skew_reverse_kl(student, teacher, alpha=0.1).item(), 6)
        0.113137
    """
    log_p, log_q, mask = _checked(
        student, teacher, alpha, temperature, mask, reduction, shared_vocab, "skew_reverse_kl"
    )
    return reduce_rows(kl_rows(log_q, log_mixture(log_q, log_p, alpha) if alpha else log_p), mask, reduction)


def _checked(
    student: Tensor,
    teacher: Tensor,
    alpha: float,
    temperature: float,
    mask: Tensor | None,
    reduction: Reduction,
    shared_vocab: int | None,
    where: str,
) -> tuple[Tensor, Tensor, Tensor | None]:
    check_choice(reduction, REDUCTIONS, where, "reduction")
    check_positive(temperature, where, "temperature")
    if not 0 <= alpha < 1:
        raise InputError("alpha does not fit", where=where, expected="a number in [0, 1)", got=alpha)
    student, teacher, mask = logit_rows(student, teacher, mask, shared_vocab, reduction, where)
    return log_probs(teacher, temperature), log_probs(student, temperature), mask
