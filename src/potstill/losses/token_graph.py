"""TRG: how patches of all images of a batch relate, and how those of one image do."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import (
    blank,
    check_choice,
    check_mask,
    check_positive,
    full_pair,
    without_autocast,
    zero_with_graph,
)


def trg_local_loss(
    student_tokens: Tensor,
    teacher_tokens: Tensor,
    k: int = 8,
    sigma: float | Literal["mean"] = "mean",
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """Compare the graphs of nearest neighbours among the sampled tokens: KL(student || teacher), mean over tokens.

    An edge leads from a token to those it is near to, in whatever image they are, and weighs exp(-d² / 2 sigma); rows
    of weights go through a softmax. Needs no projector. It couples all tokens of a batch, so splitting the batch for
    accumulation or over ranks changes the value; larger batches are better. Which tokens are neighbours is decided
    without a gradient.

    Args:
        student_tokens: ``(M, D_s)``, as ``sample_tokens`` gives them.
        teacher_tokens: ``(M, D_t)``; no gradient flows into them.
        k: Neighbours of a token, itself not among them; of equally near ones the first.
        sigma: In squared units of the tokens; "mean" = the mean squared distance of that model's tokens, which makes
            the loss blind to their scale.
        mask: True at tokens that count, ``(M,)``; None = all. Others are dropped first.

    Returns:
        Nats, a scalar.

    Raises:
        InputError: k outside 1 to M - 1; sigma not above 0; mask not bool.
        ShapeError: not two axes; M differs or is below 2; the mask does not fit.

    Source:
        Zhang, Liu and He, "Knowledge Distillation via Token-level Relationship Graph", 2023, arXiv 2306.12442, after a
        public note on its equations. The paper sums over tokens. Own neighbours for each model and "mean" are ours.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [2.0], [3.0]])
        >>> round(trg_local_loss(student, teacher, k=1, sigma=0.5).item(), 7)
        0.0248925
    """
    name = "trg_local_loss"
    if isinstance(sigma, str):
        check_choice(sigma, ("mean",), name, "sigma")
    else:
        check_positive(sigma, name, "sigma")
    student, teacher = _token_pair(student_tokens, teacher_tokens, mask, name)
    M = len(student)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= M - 1:
        raise InputError("k does not fit", where=name, expected=f"1 to {M - 1} neighbours of {M} tokens", got=k)
    return _kl_of_graphs(*_graph(student, k, sigma), *_graph(teacher, k, sigma)).mean()


def trg_global_loss(
    student_tokens: Tensor,
    teacher_tokens: Tensor,
    projection: Tensor | None,
    tau: float,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """Let every student token find the teacher's token of its own place among all tokens of the batch (InfoNCE).

    It fixes features themselves, where the graph fixes only who is near to whom. It couples all tokens of a batch, so
    splitting the batch changes the value, and it is not 0 for equal models: about ln M if tokens tell nothing apart.

    Args:
        student_tokens: ``(M, D_s)``, as ``sample_tokens`` gives them.
        teacher_tokens: ``(M, D_t)``; no gradient flows into them.
        projection: W, ``(D_t, D_s)``, trained with the student; None where the widths agree.
        tau: Temperature of the cosines, see ``trg_temperature``.
        mask: True at tokens that count, ``(M,)``; None = all. Others are dropped first.

    Returns:
        Nats, a scalar.

    Raises:
        InputError: tau not above 0; mask not bool.
        ShapeError: not two axes; M differs or is below 2; widths differ without a projection; it or the mask does not
            fit.

    Source:
        As for ``trg_local_loss``; the cosine is our reading. A token of zeros has the cosine 0 with every other.

    Example:
        >>> import torch
        >>> round(trg_global_loss(torch.eye(2), torch.eye(2), None, 1.0).item(), 6)
        0.313262
    """
    name = "trg_global_loss"
    check_positive(tau, name, "tau")
    student, teacher = _token_pair(student_tokens, teacher_tokens, mask, name)
    D_s, D_t = student.shape[1], teacher.shape[1]
    if projection is None and D_s != D_t:
        raise ShapeError(
            f"widths differ: student has {D_s} channels, teacher {D_t}",
            where=name,
            hint=f"Pass a projection of shape ({D_t}, {D_s}).",
        )
    if projection is not None and projection.shape != (D_t, D_s):
        raise ShapeError(
            "projection does not fit", where=name, expected=f"(D_t, D_s) = {[D_t, D_s]}", got=list(projection.shape)
        )
    with without_autocast(student):
        if projection is not None:
            student = student @ projection.to(student.dtype).T
        scores = _unit(student) @ _unit(teacher).T / tau  # (M, M)
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


def trg_inner_loss(student_tokens: Tensor, teacher_tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compare how the tokens of one image attend to each other: squared difference of softmax(F F' / sqrt(D)).

    All n tokens of an image, not a sample. Needs no projector. The entries of n x n rows that sum to 1 are about 1/n,
    so the value is tiny: it takes a weight near 100 (n / 49) beside the other terms.

    Args:
        student_tokens: ``(B, n, D_s)``.
        teacher_tokens: ``(B, n, D_t)``; no gradient flows into them.
        mask: True at tokens that count, ``(B, n)``, at least one in every image; None = all. Others are neither rows
            nor columns.

    Returns:
        A scalar without unit: the mean over all pairs of tokens that count, of all images together; 0 with a graph if
        B is 0.

    Raises:
        InputError: an image without any token that counts; mask not bool.
        ShapeError: not three axes; B or n differ; the mask does not fit.

    Source:
        As for ``trg_local_loss``.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[[1.0], [0.0]]]), torch.zeros(1, 2, 1)
        >>> round(trg_inner_loss(student, teacher).item(), 6)
        0.026694
    """
    name = "trg_inner_loss"
    student, teacher = full_pair(student_tokens, teacher_tokens, name)
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[:2] != teacher.shape[:2]:
        raise ShapeError(
            "tokens do not fit",
            where=name,
            expected="student (B, n, D_s) and teacher (B, n, D_t)",
            got=f"student {list(student.shape)}, teacher {list(teacher.shape)}",
        )
    check_mask(mask, student.shape[:2], name, "(B, n)")
    if student.numel() == 0:
        return zero_with_graph(student)
    if mask is None:
        return (_context(student, None) - _context(teacher, None)).square().mean()
    if not mask.any(1).all():
        raise InputError("an image has no token that counts", where=name, hint="Drop such images from the batch.")
    gaps = _context(blank(student, mask), mask) - _context(blank(teacher, mask), mask)
    pairs = mask.unsqueeze(1) & mask.unsqueeze(2)
    return gaps.masked_fill(~pairs, 0).square().sum() / pairs.sum()


def _token_pair(student: Tensor, teacher: Tensor, mask: Tensor | None, where: str) -> tuple[Tensor, Tensor]:
    """Return the tokens that count in the working precision, at least two."""
    student, teacher = full_pair(student, teacher, where)
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise ShapeError(
            "tokens do not fit",
            where=where,
            expected="student (M, D_s) and teacher (M, D_t)",
            got=f"student {list(student.shape)}, teacher {list(teacher.shape)}",
        )
    check_mask(mask, student.shape[:1], where, "(M,)")
    if mask is not None:
        student, teacher = student[mask], teacher[mask]
    if len(student) < 2:
        raise ShapeError("too few tokens to relate", where=where, expected="M >= 2", got=f"M = {len(student)}")
    return student, teacher


def _graph(tokens: Tensor, k: int, sigma: float | str) -> tuple[Tensor, Tensor]:
    """Return the edges: the k tokens nearest to each and their weights, both ``(k, M)``, a column for every token."""
    M = len(tokens)
    squared = _squared_distances(tokens)
    if sigma == "mean":
        sigma = (squared.detach().sum() / (M * (M - 1))).clamp_min(1e-12)
    near = _nearest(squared.detach(), k)
    return near, torch.exp(-squared.gather(0, near) / (2 * sigma))


def _kl_of_graphs(near_s: Tensor, ours: Tensor, near_t: Tensor, theirs: Tensor) -> Tensor:
    """Return KL(student || teacher) of the softmax of each row of both graphs, ``(M,)``.

    Where a graph has no edge its weight is 0: all but 2 k of M entries of a row are alike in both, and a row's
    normaliser is Z = M + sum(e^A - 1) over edges. As in ``kl_rows`` the terms are p (r + e^-r - 1) with r = log(p / q),
    which are all at least 0, so that graphs that are nearly equal keep their digits.
    """
    M = ours.shape[1]
    there = ours.new_zeros(M, M).scatter(0, near_t, theirs).gather(0, near_s)  # the teacher's weight on our edges
    is_ours = torch.zeros(M, M, dtype=torch.bool, device=ours.device).scatter(0, near_s, True)
    is_new = ~is_ours.gather(0, near_t)  # the teacher's edges that are not ours
    Z_t = M + _by_row(near_t, theirs.expm1())
    change = _by_row(near_s, ours.expm1() - there.expm1()) - _by_row(near_t, theirs.expm1() * is_new)  # Z_s - Z_t
    rest = -torch.log1p(change / Z_t)  # log(p / q) where neither has an edge
    total = _by_row(near_s, ours.exp() * _above_0(ours - there + rest[near_s]))
    total = total + _by_row(near_t, _above_0(rest[near_t] - theirs) * is_new)
    edges = _by_row(near_s, torch.ones_like(theirs)) + _by_row(near_t, is_new.to(theirs.dtype))
    return (total + (M - edges) * _above_0(rest)) / (Z_t + change)


def _above_0(r: Tensor) -> Tensor:
    return r + torch.expm1(-r)


def _by_row(near: Tensor, values: Tensor) -> Tensor:
    """Return the sum of the values on the edges of each row, ``(M,)``."""
    return values.new_zeros(values.shape[1]).index_add(0, near.flatten(), values.flatten())


def _squared_distances(tokens: Tensor) -> Tensor:
    """Return all squared distances ``(M, M)``, by one matrix product.

    |a|² + |b|² - 2ab loses near neighbours in float32: the value is computed in float64, and rounded, so that tokens
    equally far stay so. Its gradient has no such difference of large numbers and is that of the working precision.
    """
    centred = tokens - tokens.detach().mean(0)
    with torch.no_grad(), without_autocast(tokens):
        value = _by_product(centred.double()).clamp_min(0).to(tokens.dtype)
    if not tokens.requires_grad:
        return value
    with without_autocast(tokens):
        slope = _by_product(centred)
    return value + (slope - slope.detach())


def _by_product(x: Tensor) -> Tensor:
    squares = x.square().sum(1)
    return torch.addmm(squares.unsqueeze(1) + squares, x, x.T, alpha=-2)


def _nearest(squared: Tensor, k: int) -> Tensor:
    """Return the k tokens nearest to each, ``(k, M)``, of equally near ones the first."""
    itself = torch.eye(len(squared), dtype=torch.bool, device=squared.device)
    rows = squared.masked_fill(itself, torch.inf)  # symmetric: a row is a column, and lies together in memory
    values, order = rows.topk(k + 1, dim=1, largest=False)  # one more than wanted: itself is never taken, k < M
    if (values[:, k - 1] < values[:, k]).all():
        return order[:, :k].T
    nearer, as_far = rows < values[:, k - 1 : k], rows == values[:, k - 1 : k]
    chosen = nearer | (as_far & (as_far.cumsum(1) <= k - nearer.sum(1, keepdim=True)))
    return chosen.nonzero()[:, 1].view(-1, k).T


def _unit(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.masked_fill(norm == 0, 1)


def _context(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Return softmax over columns that count of F F' / sqrt(D), ``(B, n, n)``."""
    with without_autocast(tokens):
        scores = tokens @ tokens.transpose(1, 2) / math.sqrt(tokens.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(1), -torch.inf)
    return scores.softmax(-1)
