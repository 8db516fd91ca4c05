"""DDK's weights: how often each domain is to be drawn, from how far the student lags its teacher there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from potstill.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


def init_domain_weights(student_ppl: Sequence[float] | Tensor, teacher_ppl: Sequence[float] | Tensor) -> Tensor:
    """Return the weights to begin with: a softmax over the ratios of the perplexities.

    Not for models of different tokenizers, whose perplexities per token are not comparable: give perplexities per byte
    of both.

    Args:
        student_ppl: Perplexity of the student on every domain's held-out texts, ``(N,)``.
        teacher_ppl: That of the teacher.

    Returns:
        Weights ``(N,)`` in float64 that sum to 1.

    Raises:
        InputError: no domain; lengths differ; a perplexity that is not finite or not above 0.

    Source:
        Liu et al., "DDK: Distilling Domain Knowledge for Efficient Large Language Models", NeurIPS 2024, equation 1.
        The largest ratio is taken off all of them before the exponential: early ratios are in the hundreds.

    Example:
        >>> [round(weight, 6) for weight in init_domain_weights([20.0, 10.0], [10.0, 10.0]).tolist()]
        [0.731059, 0.268941]
    """
    return _ratios(student_ppl, teacher_ppl).softmax(0)


def update_domain_weights(
    prev_weights: Sequence[float] | Tensor,
    student_ppl: Sequence[float] | Tensor,
    teacher_ppl: Sequence[float] | Tensor,
    alpha: float = 0.5,
) -> Tensor:
    """Return the weights after an interval: the last ones times exp(ratio), normalised, mixed with equal shares.

    Args:
        prev_weights: Weights of the interval that ended, ``(N,)``, not negative, of sum 1.
        student_ppl: Perplexity of the student now, ``(N,)``.
        teacher_ppl: That of the teacher, which never changes.
        alpha: Share of the ratios; the rest is spread evenly, so that no weight is below ``(1 - alpha) / N``. 1 = no
            floor, 0 = equal weights always.

    Returns:
        Weights ``(N,)`` in float64 that sum to 1.

    Raises:
        InputError: as ``init_domain_weights``; weights that are none; alpha outside [0, 1].

    Source:
        DDK, equation 2.

    Example:
        >>> [round(w, 6) for w in update_domain_weights([0.731059, 0.268941], [15.0, 10.0], [10.0, 10.0]).tolist()]
        [0.658787, 0.341213]
    """
    if not 0 <= alpha <= 1:
        raise InputError("does not fit", where="alpha", expected="a number in [0, 1]", got=alpha)
    ratios = _ratios(student_ppl, teacher_ppl)
    weights = _row(prev_weights, "prev_weights")
    if len(weights) != len(ratios):
        raise InputError("does not fit", where="prev_weights", expected=f"{len(ratios)} numbers", got=len(weights))
    if not (weights >= 0).all() or not abs(weights.sum().item() - 1) <= 1e-6:
        raise InputError("are no weights", where="prev_weights", expected="not negative, sum 1", got=weights.tolist())
    psi = (weights.log() + ratios).softmax(0)
    return alpha * psi + (1 - alpha) / len(psi)


def _ratios(student_ppl: Sequence[float] | Tensor, teacher_ppl: Sequence[float] | Tensor) -> Tensor:
    student, teacher = _row(student_ppl, "student_ppl"), _row(teacher_ppl, "teacher_ppl")
    if len(student) != len(teacher):
        raise InputError("does not fit", where="teacher_ppl", expected=f"{len(student)} numbers", got=len(teacher))
    for field, row in (("student_ppl", student), ("teacher_ppl", teacher)):
        if not (row.isfinite() & (row > 0)).all():
            raise InputError("is no perplexity", where=field, expected="finite and above 0", got=row.tolist())
    return student / teacher


def _row(values: Sequence[float] | Tensor, field: str) -> Tensor:
    import torch  # here, as no policy needs it to be loaded

    row = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach()
    if row.ndim != 1 or not len(row):
        raise InputError("does not fit", where=field, expected="one number per domain, at least one", got=values)
    return row
