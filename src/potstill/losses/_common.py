"""What every loss shares: checked inputs, softmax in full precision, masks and reductions."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from potstill.errors import InputError, ShapeError, suggest

Reduction = Literal["mean", "sum", "none"]
REDUCTIONS = ("mean", "sum", "none")
LOG_ZERO = -1e30
"""Stands for log 0 where two logs are added: the sum of two that are -inf would have a NaN gradient."""
CHUNK = 2**22
"""Numbers of one tensor (16 MiB in float32) that a loss over a vocabulary works on at a time."""
Loss = TypeVar("Loss", bound=Callable[..., Any])


def by_rows(loss: Loss) -> Loss:
    """Say of a loss that its value at a position depends on that position alone: a decorator.

    Such a loss can be computed some rows at a time, by ``potstill.losses.fused``. It takes the student's logits
    ``[R, V]``, then whatever it compares them with, a row for each, and ``reduction="none"``.
    """
    loss.is_by_rows = True
    return loss


def is_by_rows(loss: Callable[..., Any]) -> bool:
    """Return whether a loss is under ``by_rows``."""
    return getattr(loss, "is_by_rows", False)


def check_choice(value: str, choices: tuple[str, ...], where: str, name: str) -> None:
    """Refuse a word that is not one of ``choices``."""
    if value not in choices:
        listed = ", ".join(f'"{choice}"' for choice in choices)
        raise InputError(f"unknown {name}", where=where, expected=listed, got=value, hint=suggest(str(value), choices))


def check_positive(value: float, where: str, name: str) -> None:
    """Refuse a number that is not finite and above 0."""
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"{name} does not fit", where=where, expected="a finite number above 0", got=value)


def check_unit(value: float, where: str, name: str) -> None:
    """Refuse a number outside [0, 1]."""
    if not 0 <= value <= 1:
        raise InputError(f"{name} does not fit", where=where, expected="a number in [0, 1]", got=value)


def check_mask(mask: Tensor | None, shape: torch.Size, where: str, letters: str) -> None:
    """Refuse a mask that is not bool or not of ``shape``; ``letters`` names the axes for the message."""
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise InputError(
            "mask is not bool",
            where=where,
            expected="torch.bool, True = counts",
            got=mask.dtype,
            hint="Use mask.bool().",
        )
    if mask.shape != shape:
        raise ShapeError("mask does not fit", where=where, expected=f"{letters} = {list(shape)}", got=list(mask.shape))


def full_pair(student: Tensor, teacher: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """Return both tensors in the working precision, the teacher detached; refuse what is not floating point."""
    for side, x in (("student", student), ("teacher", teacher)):
        if not x.is_floating_point():
            raise InputError(f"{side} is not floating point", where=where, got=x.dtype)
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student.to(dtype), teacher.detach().to(dtype)


def check_same_logits(student: Tensor, teacher: Tensor, ndim: int, where: str, expected: str, **more: str) -> None:
    """Refuse logits that are not both of ``ndim`` axes and of one shape."""
    if student.ndim != ndim or student.shape != teacher.shape:
        raise ShapeError(
            "logits do not fit",
            where=where,
            expected=f"student and teacher {expected}",
            got=f"student {list(student.shape)}, teacher {list(teacher.shape)}",
            **more,
        )


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Keep matrix products in the working precision under autocast, which would round them to half precision."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def blank(x: Tensor, mask: Tensor | None) -> Tensor:
    """Put 0 at masked positions of ``x (..., D)``: whatever stands there, value and gradient are then finite."""
    return x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0)


def logit_pair(
    student: Tensor, teacher: Tensor, mask: Tensor | None, shared_vocab: int | None, where: str
) -> tuple[Tensor, Tensor]:
    """Check logits ``(..., V)`` and their mask ``(...)``; return them in full precision, blank where masked."""
    student, teacher = full_pair(*checked_logits(student, teacher, mask, shared_vocab, where), where)
    return blank(student, mask), blank(teacher, mask)


def logit_rows(
    student: Tensor, teacher: Tensor, mask: Tensor | None, shared_vocab: int | None, reduction: Reduction, where: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return what ``logit_pair`` does, and the mask that is left; only positions that count, unless all are asked for.

    Captions in a batch of four tasks, or answers behind a long prompt: most positions do not count, and a softmax over
    a vocabulary costs as much there as anywhere.
    """
    if mask is None or reduction == "none":
        return *logit_pair(student, teacher, mask, shared_vocab, where), mask
    student, teacher = checked_logits(student, teacher, mask, shared_vocab, where)
    return *full_pair(student[mask], teacher[mask], where), None


SHARE_CLASSES = "If the first n classes are the same in both, pass shared_vocab=n: both are cut and renormalised."
CUT_CLASSES = "If the first n classes are the same in both, cut both logits to them."


def checked_logits(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    shared_vocab: int | None,
    where: str,
    hint: str = SHARE_CLASSES,
) -> tuple[Tensor, Tensor]:
    """Refuse logits ``(..., V)`` or a mask ``(...)`` that do not fit; return the logits as they are, cut if asked."""
    if student.ndim == 0 or teacher.ndim == 0:
        raise ShapeError("a scalar is no logit tensor", where=where, expected="(..., V)")
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ShapeError(
            "leading shapes of student and teacher logits differ",
            where=where,
            expected=f"teacher {[*student.shape[:-1], 'V']}",
            got=list(teacher.shape),
        )
    V_s, V_t = student.shape[-1], teacher.shape[-1]
    if shared_vocab is not None:
        if not 1 <= shared_vocab <= min(V_s, V_t):
            raise ShapeError(
                "shared_vocab does not fit",
                where=where,
                expected=f"1 to {min(V_s, V_t)} (student has {V_s} classes, teacher {V_t})",
                got=shared_vocab,
            )
        student, teacher = student[..., :shared_vocab], teacher[..., :shared_vocab]
    elif V_s != V_t:
        raise ShapeError(
            f"vocabularies differ: student has {V_s} classes, teacher {V_t}",
            where=where,
            hint=hint,
        )
    elif V_s == 0:
        raise ShapeError("logits have no class", where=where, expected="V >= 1", got=list(student.shape))
    check_mask(mask, student.shape[:-1], where, "the leading shape")
    return student, teacher


def log_probs(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return log softmax(logits / temperature) over the last axis."""
    return F.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)


def kl_rows(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) over the last axis from log-probabilities, both of which must be normalised.

    A class with p = 0 costs nothing even where a log is -inf (a banned token), in value and in gradient.
    """
    return _KL.apply(log_p, log_q)


def log_mixture(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Return log(share · exp(first) + (1 - share) · exp(second)) for a share in (0, 1)."""
    return torch.logaddexp(first.clamp_min(LOG_ZERO) + math.log(share), second.clamp_min(LOG_ZERO) + math.log1p(-share))


def jsd_rows(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """Return the generalised Jensen-Shannon divergence over the last axis; at 0 forward KL, at 1 reverse KL."""
    if beta == 0:
        return kl_rows(log_p, log_q)
    if beta == 1:
        return kl_rows(log_q, log_p)
    log_m = log_mixture(log_p, log_q, beta)
    return beta * kl_rows(log_p, log_m) + (1 - beta) * kl_rows(log_q, log_m)


class _KL(torch.autograd.Function):
    """The sum of p log(p / q) + q - p, whose terms are all at least 0, where those of p log(p / q) cancel.

    Close to the teacher the plain sum keeps hardly a digit in float32 and may be below 0 (``docs/numerics.md``). Sums
    of q and of p are both 1, so the value is the same.
    """

    generate_vmap_rule = True  # so that torch.func works on the losses

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def forward(log_p: Tensor, log_q: Tensor) -> Tensor:
        p, q = log_p.exp(), log_q.exp()
        gap = (log_p - log_q).masked_fill_(p == 0, -1)
        close = gap > -0.5  # below, q is that much larger than p, and expm1 would overflow in the end
        exact = torch.expm1(-gap).add_(gap).mul_(p)
        return torch.where(close, exact, gap.mul_(p).add_(q.sub_(p))).sum(-1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        log_p, log_q = ctx.saved_tensors
        grad, p = grad.unsqueeze(-1), log_p.exp()
        to_p = grad * p * (log_p - log_q).masked_fill(p == 0, 0) if ctx.needs_input_grad[0] else None
        to_q = grad * (log_q.exp() - p) if ctx.needs_input_grad[1] else None
        return to_p, to_q


def reduce_rows(rows: Tensor, mask: Tensor | None, reduction: Reduction) -> Tensor:
    """Reduce one value per position: over the positions that count, never dividing by 0."""
    if mask is not None:
        rows = rows.masked_fill(~mask, 0)
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    return rows.sum() / (max(1, rows.numel()) if mask is None else mask.sum().clamp_min(1))


def check_classes(labels: Tensor, mask: Tensor | None, shape: torch.Size, C: int, where: str) -> Tensor:
    """Refuse labels that are not integers of ``shape`` in [0, C) where they count; return them, 0 where masked."""
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError("labels are not class ids", where=where, expected="integers", got=labels.dtype)
    if labels.shape != shape:
        raise ShapeError(
            "labels do not fit", where=where, expected=f"one per row, {list(shape)}", got=list(labels.shape)
        )
    labels = labels.long() if mask is None else labels.long().masked_fill(~mask, 0)
    strange = labels[(labels < 0) | (labels >= C)]
    if strange.numel():
        raise InputError("a label is no class", where=where, expected=f"0 to {C - 1}", got=strange[0].item())
    return labels


def zero_with_graph(student: Tensor) -> Tensor:
    """Return 0 that depends on the student, so that ``backward`` works when nothing is left to count."""
    return student.flatten()[:0].sum()


def over_chunks(function: Callable[..., Tensor], width: int, *rows: Tensor) -> Tensor:
    """Apply ``function`` to a few rows at a time and join the results; of a chunk only its input is kept for backward.

    What a loss derives from ``(N, V)`` logits (sorted copies, gates, products) is made anew in the backward pass, so
    that none of it has the size of all logits. ``width`` is V. One chunk, or none, is computed as it is.
    """
    size = max(1, CHUNK // width)
    if len(rows[0]) <= size:
        return function(*rows)
    chunks = zip(*(x.split(size) for x in rows))
    return torch.cat([checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks])


def run_layers(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Run a small network in the precision of ``x``, whatever its parameters are kept in."""
    for layer in layers:
        x = F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype)) if isinstance(layer, nn.Linear) else layer(x)
    return x
