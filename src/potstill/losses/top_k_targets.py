"""Divergences from a teacher of whom only some classes of each position were kept."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import (
    REDUCTIONS,
    Reduction,
    blank,
    by_rows,
    check_choice,
    check_mask,
    check_unit,
    jsd_rows,
    reduce_rows,
)
from potstill.losses._top_k import TopK, check_cached, student_log_probs


@by_rows
def cached_loss(
    student: Any,
    targets: TopK,
    *,
    loss: str = "kd_kl",
    mode: str | None = None,
    temperature: float = 1.0,
    scale_by_t2: bool | None = None,
    beta: float = 0.5,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    shared_vocab: int | None = None,
) -> Tensor:
    """Compare a student's logits with a teacher of whom k classes were kept.

    For teachers whose answers are read from disk. With all logits at hand use ``kd_kl`` and its like: what is left out
    here is lost. Of the three ways to read the targets

    - "tail" puts all other classes into one. Every divergence between the k + 1 masses is at most that between the V
      classes (data processing), so this is a lower bound, and nothing tells the student how to share out the tail;
    - "renormalised" gives the teacher's tail to the kept classes. The student is drawn to be surer than its teacher;
    - "sampled" weighs classes that were drawn from the teacher by how often they were. Value and gradient are, over
      draws, those of the full forward KL; the value of one position may be below 0.

    Args:
        student: Logits ``(..., V)``; or ``LazyLogits`` of ``potstill.losses.fused``, which are never formed.
        targets: The kept classes, ``TopK``; no gradient flows into them.
        loss: "kd_kl", "reverse_kl", "generalized_jsd" or "tv_distance".
        mode: "tail", "renormalised" or "sampled"; None = as ``targets.mode`` says.
        temperature: T. "tail" needs the mass of the tail at that temperature, which the mass at another does not tell;
            "sampled" is for T = 1; "renormalised" for any.
        scale_by_t2: Multiply by T²; None = as the loss of that name does.
        beta: Of ``generalized_jsd``.
        mask: True at positions that count, ``(...)``; None = all.
        reduction: "mean" over the positions that count, "sum", or "none" for ``(...)`` with 0 at masked positions.
        shared_vocab: Cut the student's vocabulary to the first n classes, of which the targets must be.

    Returns:
        What the loss of that name returns: nats, or a number in [0, 1] for "tv_distance"; a scalar unless
        ``reduction`` is "none".

    Raises:
        InputError: an unknown loss, mode or reduction; a temperature at which the tail is not known; a loss that is
            infinite ("reverse_kl", "renormalised") or cannot be estimated ("sampled", all but "kd_kl") this way;
            targets of the other kind.
        ShapeError: vocabularies, leading shapes or the mask do not fit.

    Source:
        The bound for "tail" is the log-sum inequality (Cover and Thomas, theorem 2.7.1). "sampled": Anshumann et al.,
        "Sparse Logit Sampling", arXiv 2503.16870, with the teacher itself as the proposal. In float32 a student's tail
        below 1e-6 counts as 1e-6: one minus a sum knows no better.

    Example:
        >>> import math, torch
        >>> log_probs = torch.tensor([[math.log(0.75)]])
        >>> targets = TopK(torch.tensor([[0]]), log_probs, {1.0: torch.tensor([math.log(0.25)])}, vocab=2)
        >>> round(cached_loss(torch.zeros(1, 2), targets).item(), 6)
        0.130812
    """
    mode = targets.mode if mode is None else mode
    check_choice(reduction, REDUCTIONS, "cached_loss", "reduction")
    check_unit(beta, "cached_loss", "beta")
    check_cached(loss, mode, targets, temperature=temperature)
    student = _same_classes(student, targets, shared_vocab)
    check_mask(mask, targets.shape[:-1], "cached_loss", "the leading shape")
    is_formed = isinstance(student, Tensor)
    if mask is not None and is_formed and reduction != "none":
        student, targets, mask = student[mask], targets[mask], None
    elif mask is not None:
        targets = _blank(targets, mask)
        student = blank(student, mask) if is_formed else student
    log_q = student_log_probs(student, targets.ids.detach().long(), temperature, mask)
    return reduce_rows(_rows(log_q, targets, loss, mode, temperature, scale_by_t2, beta), mask, reduction)


def _rows(
    log_q: Tensor, targets: TopK, loss: str, mode: str | None, temperature: float, scale_by_t2: bool | None, beta: float
) -> Tensor:
    """Return a value for every position from the student's log-probabilities of the kept classes, ``(..., k)``."""
    mode, log_p = targets.mode if mode is None else mode, targets.log_probs.detach()
    log_p = log_p.to(torch.promote_types(torch.promote_types(log_p.dtype, torch.float32), log_q.dtype))
    if mode == "sampled":
        rows = _expected(log_p, log_q, targets.counts)
    else:
        tail = targets.tail[float(temperature)].detach().to(log_p) if mode == "tail" else None
        is_whole = targets.ids.shape[-1] == targets.vocab
        rows = _divergence(loss, *_bins(log_p / temperature, tail, log_q, is_whole), beta)
    scale_by_t2 = loss == "kd_kl" if scale_by_t2 is None else scale_by_t2
    return rows * temperature**2 if scale_by_t2 else rows


def _same_classes(student: Any, targets: TopK, shared_vocab: int | None) -> Any:
    V, where = targets.vocab, "cached_loss"
    if isinstance(student, Tensor) and not student.is_floating_point():
        raise InputError("student is not floating point", where=where, got=student.dtype)
    if student.shape[:-1] != targets.shape[:-1]:
        raise ShapeError(
            "leading shapes of student and teacher logits differ",
            where=where,
            expected=f"teacher {[*student.shape[:-1], 'V']}",
            got=list(targets.shape),
        )
    if shared_vocab is not None and shared_vocab != V:
        raise ShapeError(
            "the classes were kept of another vocabulary",
            where=where,
            expected=f"shared_vocab {V}",
            got=shared_vocab,
            hint="Build the cache with the same shared_vocab.",
        )
    if (shared_vocab is None and student.shape[-1] != V) or student.shape[-1] < V:
        raise ShapeError(
            f"vocabularies differ: student has {student.shape[-1]} classes, teacher {V}",
            where=where,
            hint="If the first n classes are the same in both, build the cache with shared_vocab: n.",
        )
    if student.shape[-1] == V:
        return student
    return student[..., :V] if isinstance(student, Tensor) else replace(student, vocab=V)


def _blank(targets: TopK, mask: Tensor) -> TopK:
    """Put a sound distribution at masked positions: whatever stands there, value and gradient are then finite."""
    out, k = ~mask, targets.ids.shape[-1]
    wide = out.unsqueeze(-1)
    counts = targets.counts
    return replace(
        targets,
        ids=targets.ids.masked_fill(wide, 0),
        log_probs=targets.log_probs.masked_fill(wide, -math.log(k + 1)),
        tail={t: x.masked_fill(out, -math.log(k + 1)) for t, x in targets.tail.items()},
        counts=None if counts is None else counts.masked_fill(wide, 0),
    )


def _bins(log_p: Tensor, tail: Tensor | None, log_q: Tensor, is_whole: bool) -> tuple[Tensor, Tensor]:
    """Return the masses of the kept classes and of all others together, ``(..., k + 1)``, of teacher and student."""
    log_p = log_p.log_softmax(-1)  # whatever rounding did to what was kept, its masses sum to 1
    if is_whole:
        return log_p, log_q
    if tail is None:
        tail = torch.full_like(log_p[..., 0], -torch.inf)
    log_p = torch.cat([log_p + _log_rest(tail.exp()).unsqueeze(-1), tail.unsqueeze(-1)], -1)
    kept = log_q.exp().sum(-1)
    floor = 8 * torch.finfo(kept.dtype).eps
    rest = _log_rest(kept, floor)
    # Above 1 by rounding, or a tail held at the floor: the masses still have to sum to 1.
    return log_p, torch.cat([log_q, rest.unsqueeze(-1)], -1).log_softmax(-1)


def _log_rest(mass: Tensor, floor: float = 0.0) -> Tensor:
    return (1 - mass).clamp_min(floor).log()


def _divergence(loss: str, log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    if loss == "tv_distance":
        return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)
    return jsd_rows(log_p, log_q, {"kd_kl": 0, "reverse_kl": 1}.get(loss, beta))


def _expected(log_p: Tensor, log_q: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of log p - log q over the classes that were drawn."""
    counts = counts.to(log_p)
    drawn = counts > 0
    gap = (log_p - log_q).masked_fill(~drawn, 0)
    return (counts * gap).sum(-1) / counts.sum(-1).clamp_min(1)
