"""Span correlation: how neighbouring tokens of one phrase go together, in the student as in the teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import (
    CUT_CLASSES,
    check_positive,
    checked_logits,
    full_pair,
    log_probs,
    over_chunks,
    zero_with_graph,
)


def span_correlation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    span_ids: Tensor,
    mask: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Squared distance between products of neighbouring next-token distributions, within spans.

    The product of two neighbours tells which classes both hold likely; matching it ties the tokens of a phrase together
    where a token-wise loss sees each for itself. Only ever an addition to one: two pairs of quite different
    distributions can have the same product. Not for spans of one token, which have no pair.

    Args:
        student_logits: ``(B, T, V)``, at each position the logits of its token: shifted already.
        teacher_logits: The same of the teacher; no gradient flows into them.
        span_ids: Which span each token belongs to, whole numbers ``(B, T)``; -1 = none. A pair is two neighbours of the
            same span.
        mask: True at tokens that count, ``(B, T)``; None = all. Both tokens of a pair have to.
        temperature: Both logits are divided by it; no factor T² follows.

    Returns:
        Without unit, from 0 to 2: the mean over the pairs of the sum over the classes; 0 with a graph if there is none.

    Raises:
        InputError: temperature not above 0; span ids that are no whole numbers; mask not bool.
        ShapeError: not three axes; vocabularies, leading shapes, span ids or the mask do not fit.

    Source:
        Liu et al., "Multi-Granularity Semantic Revision for Large Language Model Distillation", arXiv 2407.10068, span
        level. The squared distance and the mean over pairs are our reading.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[[0.9, 0.1], [0.8, 0.2]]]).log()
        >>> student = torch.tensor([[[0.4, 0.6], [0.5, 0.5]]]).log()
        >>> round(span_correlation_loss(student, teacher, torch.tensor([[0, 0]])).item(), 6)
        0.3488
    """
    name = "span_correlation_loss"
    check_positive(temperature, name, "temperature")
    student, teacher = checked_logits(student_logits, teacher_logits, mask, None, name, CUT_CLASSES)
    if student.ndim != 3:
        raise ShapeError("logits do not fit", where=name, expected="(B, T, V)", got=list(student.shape))
    full_pair(student[:0], teacher[:0], name)
    if span_ids.is_floating_point() or span_ids.dtype == torch.bool:
        raise InputError("span ids are no whole numbers", where=name, got=span_ids.dtype)
    if span_ids.shape != student.shape[:2]:
        raise ShapeError("span ids do not fit", where=name, expected=list(student.shape[:2]), got=list(span_ids.shape))
    pairs = span_pairs(span_ids, mask)
    teacher = teacher.detach()

    def rows(*logits: Tensor) -> Tensor:
        (s, t), (s_next, t_next) = full_pair(*logits[:2], name), full_pair(*logits[2:], name)
        together = [
            (log_probs(x, temperature) + log_probs(after, temperature)).exp() for x, after in ((s, s_next), (t, t_next))
        ]
        return (together[0] - together[1]).square().sum(-1)

    found = over_chunks(
        rows,
        student.shape[-1],
        *(x[pairs] for x in (student[:, :-1], teacher[:, :-1], student[:, 1:], teacher[:, 1:])),
    )
    return found.mean() if len(found) else found.sum() + zero_with_graph(student)


def span_pairs(span_ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Tell where a token and the next one belong to the same span: what ``span_correlation_loss`` averages over.

    For counting pairs before a batch has been through a model. Has no use where spans are not of neighbours.

    Args:
        span_ids: As in ``span_correlation_loss``, ``(B, T)``.
        mask: As there.

    Returns:
        Bool ``(B, T-1)``: entry t is the pair of t and t+1.

    Raises:
        Nothing: shapes are those of ``span_correlation_loss``, which checks them.

    Source:
        As ``span_correlation_loss``.

    Example:
        >>> import torch
        >>> span_pairs(torch.tensor([[0, 0, 1, 1, -1, -1]])).tolist()
        [[True, False, True, False, False]]
    """
    pairs = (span_ids[:, :-1] == span_ids[:, 1:]) & (span_ids[:, :-1] >= 0)
    return pairs if mask is None else pairs & mask[:, :-1] & mask[:, 1:]
