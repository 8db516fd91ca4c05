"""SinKD: the cost of moving the batch of student outputs onto the batch of teacher outputs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from potstill.errors import InputError
from potstill.losses._common import (
    check_choice,
    check_mask,
    check_positive,
    check_same_logits,
    full_pair,
    zero_with_graph,
)

BatchReduction = Literal["sum", "mean"]
BATCH_REDUCTIONS = ("sum", "mean")


def sinkhorn_kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor | None = None,
    temperature: float = 2.0,
    epsilon: float = 0.1,
    n_iters: int = 20,
    reduction: BatchReduction = "sum",
    debiased: bool = False,
) -> Tensor:
    """Entropic transport cost between the student's and the teacher's probabilities of a whole batch.

    Both batches are clouds of points; the cost of a pair is the L1 distance of its probabilities. Which teacher row
    belongs to which student row is not used at all, so this is only ever an addition to cross-entropy or ``kd_kl``:
    alone it leaves a student near chance. It couples the rows of a batch: splitting a batch for accumulation or over
    ranks changes the value, each part being matched within itself. Not for large vocabularies or tiny batches.

    Args:
        student_logits: ``(N, C)``.
        teacher_logits: ``(N, C)``; no gradient flows into them.
        mask: True at rows that count, ``(N,)``; None = all. Other rows are dropped from both clouds.
        temperature: Both logits are divided by it; no factor T² follows.
        epsilon: Strength of the entropy; small = close to the exact transport plan.
        n_iters: How often rows and then columns of the plan are normalised; the gradient flows through all of it.
        reduction: "sum" over all pairs (grows with N), or "mean", that sum over N. There is no "none": a pair belongs
            to no row.
        debiased: Take off half of the cost of moving each cloud onto itself, which makes equal clouds cost 0.

    Returns:
        A scalar without unit, 0 to 2 N ("sum") or 0 to 2 ("mean") unless debiased; 0 with a graph if no row counts.

    Raises:
        InputError: temperature or epsilon not above 0; n_iters below 1; unknown reduction; mask not bool.
        ShapeError: not two axes; the logits or the mask do not fit.

    Source:
        Cui et al., "Sinkhorn Distance Minimization for Knowledge Distillation", LREC-COLING 2024, arXiv 2402.17110. The
        authors' code multiplies the sum by a hidden 0.001; here nothing is hidden, and weight 8e-4 gives theirs.
        Everything is done with logarithms, so a small epsilon does not underflow. ``debiased`` is ours.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.7, 0.3]]).log(), torch.tensor([[0.5, 0.5]]).log()
        >>> round(sinkhorn_kd_loss(student, teacher, temperature=1.0).item(), 6)
        0.4
    """
    name = "sinkhorn_kd_loss"
    _check_options(temperature, epsilon, n_iters, reduction, name)
    check_same_logits(
        student_logits,
        teacher_logits,
        2,
        name,
        "(N, C), over the same classes",
        hint="For (B, T, V) use sinkhorn_kd_token_loss.",
    )
    check_mask(mask, student_logits.shape[:1], name, "(N,)")
    student, teacher = full_pair(student_logits, teacher_logits, name)
    if mask is not None:
        student, teacher = student[mask], teacher[mask]
    if student.numel() == 0:
        return zero_with_graph(student)
    p, q = _probabilities(student, temperature), _probabilities(teacher, temperature)
    cost = _transport_cost(p, q, epsilon, n_iters)
    if debiased:
        cost = cost - (_transport_cost(p, p, epsilon, n_iters) + _transport_cost(q, q, epsilon, n_iters)) / 2
    return cost / len(p) if reduction == "mean" else cost


def sinkhorn_kd_token_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor | None = None,
    temperature: float = 2.0,
    epsilon: float = 0.1,
    n_iters: int = 20,
    reduction: BatchReduction = "sum",
    debiased: bool = False,
    group_size: int = 128,
) -> Tensor:
    """Apply ``sinkhorn_kd_loss`` to the tokens that count, in groups of neighbours, and average the groups.

    For generative models with few words; the plan of all tokens at once would not fit into memory. Tokens are taken in
    reading order, sample after sample, and cut into as few groups as ``group_size`` allows, all about equally large.

    Args:
        student_logits: ``(B, T, V)``.
        teacher_logits: ``(B, T, V)``; no gradient flows into them.
        mask: True at tokens that count, ``(B, T)``; None = all.
        temperature: As for ``sinkhorn_kd_loss``.
        epsilon: As for ``sinkhorn_kd_loss``.
        n_iters: As for ``sinkhorn_kd_loss``.
        reduction: Within a group, as for ``sinkhorn_kd_loss``.
        debiased: As for ``sinkhorn_kd_loss``.
        group_size: Most tokens in a group.

    Returns:
        A scalar without unit; 0 with a graph if no token counts.

    Raises:
        InputError: group_size below 1; otherwise as for ``sinkhorn_kd_loss``.
        ShapeError: not three axes; the logits or the mask do not fit.

    Source:
        As for ``sinkhorn_kd_loss``, whose authors give a definition for two axes only: the groups are ours, in place of
        their code's softmax over time.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[2.0, 0.0], [2.0, 0.0]]])
        >>> round(sinkhorn_kd_token_loss(logits, logits).item(), 6)
        0.0
    """
    name = "sinkhorn_kd_token_loss"
    _check_options(temperature, epsilon, n_iters, reduction, name)
    _check_count(group_size, name, "group_size")
    check_same_logits(student_logits, teacher_logits, 3, name, "(B, T, V), over the same vocabulary")
    check_mask(mask, student_logits.shape[:2], name, "(B, T)")
    student, teacher = full_pair(student_logits, teacher_logits, name)
    student, teacher = (x.flatten(0, 1) if mask is None else x[mask] for x in (student, teacher))
    if student.numel() == 0:
        return zero_with_graph(student)
    groups = -(-len(student) // group_size)
    values = [
        sinkhorn_kd_loss(s, t, None, temperature, epsilon, n_iters, reduction, debiased)
        for s, t in zip(student.tensor_split(groups), teacher.tensor_split(groups))
    ]
    return torch.stack(values).mean()


def _check_options(temperature: float, epsilon: float, n_iters: int, reduction: str, where: str) -> None:
    check_choice(reduction, BATCH_REDUCTIONS, where, "reduction")
    check_positive(temperature, where, "temperature")
    check_positive(epsilon, where, "epsilon")
    _check_count(n_iters, where, "n_iters")


def _check_count(value: int, where: str, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} does not fit", where=where, expected="a whole number from 1 on", got=value)


def _probabilities(logits: Tensor, temperature: float) -> Tensor:
    # Around the largest: logits in the thousands, divided by a small temperature, have no digits behind the point.
    return ((logits - logits.detach().amax(-1, keepdim=True)) / temperature).softmax(-1)


def _transport_cost(p: Tensor, q: Tensor, epsilon: float, n_iters: int) -> Tensor:
    """Return Σ P D for the plan P between the rows of ``p (N, C)`` and of ``q (N, C)``."""
    distance = torch.cdist(p, q, p=1.0)  # (N, N) without (N, N, C)
    return (_log_plan(distance, epsilon, n_iters).exp() * distance).sum()


def _log_plan(distance: Tensor, epsilon: float, n_iters: int) -> Tensor:
    """Normalise exp(-distance / epsilon) by rows, then by columns, n_iters times: with logarithms of the divisors."""
    log_kernel = -distance / epsilon
    columns = torch.zeros_like(log_kernel[:1])
    for _ in range(n_iters):
        rows = (log_kernel - columns).logsumexp(1, keepdim=True)
        columns = (log_kernel - rows).logsumexp(0, keepdim=True)
    return log_kernel - rows - columns
