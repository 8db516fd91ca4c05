"""DIST: match correlations between classes and between samples instead of exact probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.errors import ShapeError
from potstill.losses._common import check_mask, check_positive, log_probs, logit_pair, zero_with_graph

_FAINT = 1e-20  # a shorter row counts as constant: beside any sensible ``eps`` it could not be told from one


def dist_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    eps: float = 1e-8,
    shared_vocab: int | None = None,
) -> Tensor:
    """Ask that student and teacher probabilities correlate, along each row and along each class column.

    T² (beta inter + gamma intra), each 1 minus a mean Pearson correlation. A strong teacher is so much sharper than a
    small student that exact agreement is out of reach; correlation asks only for the same order and proportions. It
    couples the rows of a batch: with few rows the columns say little, with a single row the second term is the
    constant 1, and splitting a batch for gradient accumulation changes the value.

    Args:
        student: Student logits ``(..., V)``, or dense ``(B, C, H, W)``: every pixel is a row, classes on axis 1.
        teacher: Teacher logits of the same shape; no gradient flows into them.
        beta: Weight of the correlation within rows (between classes).
        gamma: Weight of the correlation within class columns (between samples).
        temperature: T; both logits are divided by it.
        mask: True at rows that count, ``(...)`` or ``(B, H, W)``; None = all. Other rows are dropped first, because
            they would shift the column means.
        eps: Added to the product of the two norms.
        shared_vocab: Cut both vocabularies to the first n classes and renormalise.

    Returns:
        A scalar without unit, 0 to 2 (beta + gamma) T². 0 with a graph if no row counts.

    Raises:
        InputError: temperature not above 0; mask not bool.
        ShapeError: fewer than two axes; vocabularies, leading shapes or the mask do not fit.

    Source:
        Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, equations 8 to 10. The T² is that
        of the authors' variant with temperature.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0]])
        >>> dist_loss(logits + 5, logits).item() < 1e-6
        True
    """
    check_positive(temperature, "dist_loss", "temperature")
    if student.ndim < 2:
        raise ShapeError("no batch axis", where="dist_loss", expected="(..., V) with rows", got=list(student.shape))
    if student.ndim == 4 and teacher.ndim == 4:
        student, teacher = student.movedim(1, -1), teacher.movedim(1, -1)
    check_mask(mask, student.shape[:-1], "dist_loss", "one entry per row")
    student, teacher = logit_pair(student, teacher, None, shared_vocab, "dist_loss")
    if mask is None:
        student, teacher = student.flatten(0, -2), teacher.flatten(0, -2)
    else:
        student, teacher = student[mask], teacher[mask]
    if student.shape[0] == 0:
        return zero_with_graph(student)
    q, p = log_probs(student, temperature).exp(), log_probs(teacher, temperature).exp()
    inter, intra = _no_correlation(q, p, eps).mean(), _no_correlation(q.T, p.T, eps).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def _no_correlation(a: Tensor, b: Tensor, eps: float) -> Tensor:
    """Return 1 minus the Pearson correlation of each row of ``a`` with the same row of ``b``.

    By 1 - a'b = |a - b|² / 2 for a and b of length 1: rows nearly alike keep their digits, and it is never below 0.
    """
    units, norms = [], 1.0
    for x in (a, b):
        x = x - x.mean(-1, keepdim=True)
        # vector_norm has the subgradient 0 at a constant row, where the square root of a sum would give NaN.
        norm = torch.linalg.vector_norm(x, dim=-1)
        units.append(x / norm.clamp_min(_FAINT).unsqueeze(-1))
        norms = norms * norm
    return (norms * (units[0] - units[1]).square().sum(-1) / 2 + eps) / (norms + eps)
