"""PLD: one list-wise term in place of cross-entropy plus a weighted distillation term."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import (
    REDUCTIONS,
    Reduction,
    blank,
    check_choice,
    check_classes,
    check_mask,
    check_positive,
    check_same_logits,
    full_pair,
    reduce_rows,
)

Weights = Literal["teacher", "uniform", "ce"]
WEIGHTS = ("teacher", "uniform", "ce")


def pld_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    tau: float = 1.0,
    mask: Tensor | None = None,
    weights: Weights = "teacher",
    topk: int | None = None,
    allow_empty: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """Likelihood of one ranking per row under the student: the true class first, then the teacher's order of the rest.

    Position k adds -log of the probability that the student picks the class standing there from all that are not
    placed yet, weighted by the teacher's probability of that class. One term with no mixing weight to tune, for
    classifiers with labels. Not for data without labels, and not for models of different classes: a ranking needs one
    list. It is not 0 where both models agree; it falls as the gaps between consecutive ranks grow.

    Args:
        student_logits: ``(N, C)``; never divided by a temperature.
        teacher_logits: ``(N, C)``; no gradient flows into them.
        labels: True classes, integers ``(N,)``.
        tau: Temperature of the teacher's weights only; they sharpen to plain cross-entropy as it falls, if the teacher
            is right. 1 suits many classes, 4 was used for 100.
        mask: True at rows that count, ``(N,)``; None = all. Labels of other rows are not looked at.
        weights: "teacher" is PLD; "uniform" weighs every position 1/C (ListMLE over C); "ce" only the first.
        topk: Rank only the label and the teacher's best other classes, this many together, for large vocabularies.
            The classes behind them stay in every denominator and have no position of their own. None = all C.
        allow_empty: Return 0 with a graph if no row counts, instead of refusing.
        reduction: "mean" over rows that count, "sum", or "none" for ``(N,)`` with 0 at masked rows.

    Returns:
        Nats; a scalar unless ``reduction`` is "none".

    Raises:
        InputError: tau not above 0; topk below 1; a label that counts is outside [0, C); no row counts; unknown
            weights or reduction; mask not bool.
        ShapeError: not two axes; the logits differ in shape; C < 2; labels or the mask do not fit.

    Source:
        Bassam, Zhu and Bian, "PLD", 2025, arXiv 2506.12542. Equal teacher logits rank by class number, which the paper
        leaves open. ``topk`` is ours: from C - 1 on it is the exact loss; of equal teacher logits at its edge it keeps
        any.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[2.0, 1.0, 0.0]])
        >>> round(pld_loss(student, teacher, torch.tensor([0])).item(), 5)
        1.45692
    """
    name = "pld_loss"
    check_same_logits(student_logits, teacher_logits, 2, name, "(N, C), over the same classes")
    check_mask(mask, student_logits.shape[:1], name, "(N,)")
    return _ranked(student_logits, teacher_logits, labels, tau, mask, weights, topk, allow_empty, reduction, name)


def pld_token_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    tau: float = 1.0,
    mask: Tensor | None = None,
    weights: Weights = "teacher",
    topk: int | None = None,
    allow_empty: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """Apply ``pld_loss`` to every token whose label counts, the mean being over tokens.

    For sequences with one gold token or class per position. Labels must stand at the position that predicts them: of a
    causal model pass ``logits[:, :-1]`` and ``labels[:, 1:]``. Give ``topk`` (64 to 256) for a large vocabulary.

    Args:
        student_logits: ``(B, T, C)``.
        teacher_logits: ``(B, T, C)``; no gradient flows into them.
        labels: Integers ``(B, T)``.
        ignore_index: Tokens with this label do not count.
        tau: As for ``pld_loss``.
        mask: True at tokens that count, ``(B, T)``, beside the labels; None = all.
        weights: As for ``pld_loss``.
        topk: As for ``pld_loss``.
        allow_empty: As for ``pld_loss``.
        reduction: "mean" over tokens that count, "sum", or "none" for ``(B, T)``.

    Returns:
        Nats; a scalar unless ``reduction`` is "none".

    Raises:
        InputError: As for ``pld_loss``.
        ShapeError: not three axes; otherwise as for ``pld_loss``.

    Source:
        As for ``pld_loss``.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[[1.0, 0.0, 2.0]] * 2]), torch.tensor([[[2.0, 1.0, 0.0]] * 2])
        >>> round(pld_token_loss(student, teacher, torch.tensor([[0, -100]])).item(), 5)
        1.45692
    """
    name = "pld_token_loss"
    check_same_logits(student_logits, teacher_logits, 3, name, "(B, T, C), over the same classes")
    check_mask(mask, student_logits.shape[:-1], name, "(B, T)")
    counts = labels != ignore_index
    if mask is not None and counts.shape == mask.shape:
        counts = counts & mask
    return _ranked(student_logits, teacher_logits, labels, tau, counts, weights, topk, allow_empty, reduction, name)


def _ranked(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    tau: float,
    mask: Tensor | None,
    weights: Weights,
    topk: int | None,
    allow_empty: bool,
    reduction: Reduction,
    where: str,
) -> Tensor:
    check_choice(reduction, REDUCTIONS, where, "reduction")
    check_choice(weights, WEIGHTS, where, "weights")
    check_positive(tau, where, "tau")
    student, teacher = full_pair(student, teacher, where)
    rows, C = student.shape[:-1], student.shape[-1]
    if C < 2:
        raise ShapeError("there is nothing to rank", where=where, expected="C >= 2", got=f"C = {C}")
    if topk is not None and (isinstance(topk, bool) or topk < 1):
        raise InputError("topk does not fit", where=where, expected="a whole number from 1 on, or None", got=topk)
    labels = check_classes(labels, mask, rows, C, where)
    if not allow_empty and not (rows.numel() if mask is None else mask.any()):
        raise InputError(
            "no row counts", where=where, expected="at least one", hint="Skip such a batch, or pass allow_empty=True."
        )
    student, teacher = blank(student, mask), blank(teacher, mask)
    K = 1 if weights == "ce" else min(C, topk or C)
    order = _ranking(teacher, labels, K)  # (..., K)
    if weights == "teacher":
        log_alpha = F.log_softmax(teacher / tau, -1).gather(-1, order)
    else:
        log_alpha = torch.zeros_like(order, dtype=teacher.dtype) - (math.log(C) if weights == "uniform" else 0.0)
    return reduce_rows(_Ranking.apply(_in_order(student, order), log_alpha), mask, reduction)


def _ranking(teacher: Tensor, labels: Tensor, K: int) -> Tensor:
    """Return the label, then the teacher's best other classes, K in all; equal logits by class number."""
    first = teacher.scatter(-1, labels.unsqueeze(-1), torch.inf)
    if teacher.shape[-1] == K:
        return first.sort(dim=-1, descending=True, stable=True).indices
    best = first.topk(K, dim=-1).indices.sort(dim=-1).values
    return best.gather(-1, first.gather(-1, best).sort(dim=-1, descending=True, stable=True).indices)


def _in_order(student: Tensor, order: Tensor) -> Tensor:
    """Return the student's logits by rank, the largest being 0; the classes that have no rank as one, the last."""
    # Around their largest: a log-sum-exp of logits in the thousands has no digits left for what follows the point.
    student = student - student.detach().amax(-1, keepdim=True)
    ranked = student.gather(-1, order)
    if order.shape[-1] == student.shape[-1]:
        return ranked
    rest = student.scatter(-1, order, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([ranked, rest], -1)


class _Ranking(torch.autograd.Function):
    """Σ_k α_k log(1 + exp(r_k - s_k)) with r_k the log-sum-exp of what stands behind k.

    Term by term at least 0, and 0 where α_k is 0, even behind infinite logits (banned tokens). ``torch.logcumsumexp``
    alone has a second derivative of NaN wherever a weight is 0.
    """

    generate_vmap_rule = True  # as in ``kl_rows``

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def forward(logits: Tensor, log_alpha: Tensor) -> Tensor:
        behind, log_alpha = _tails(logits)[..., 1:], log_alpha[..., : logits.shape[-1] - 1]
        terms = -F.logsigmoid(logits[..., :-1] - behind)
        return (terms * log_alpha.exp()).masked_fill(log_alpha.isneginf(), 0).sum(-1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        logits, log_alpha = ctx.saved_tensors
        tails, log_alpha = _tails(logits), log_alpha[..., : logits.shape[-1] - 1]
        lowest = torch.finfo(logits.dtype).min / 2
        counts = ~log_alpha.isneginf()
        # How often, weighted, the student would have picked a class while a better ranked one was due.
        before = (log_alpha - tails[..., :-1]).masked_fill(~counts, lowest).logcumsumexp(-1)
        early = F.pad((before + logits[..., 1:]).exp(), (1, 0))
        missed = (log_alpha.exp() * torch.sigmoid(tails[..., 1:] - logits[..., :-1])).masked_fill(~counts, 0)
        return grad.unsqueeze(-1) * (early - F.pad(missed, (0, 1))), None


def _tails(logits: Tensor) -> Tensor:
    """Return log-sum-exp of every position and all behind it."""
    return logits.flip(-1).logcumsumexp(-1).flip(-1)
