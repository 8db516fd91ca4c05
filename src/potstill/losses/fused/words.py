"""Log-probabilities of single words under lazy logits, for policy gradients, perplexity and cached teachers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import check_classes, check_mask, check_positive, without_autocast
from potstill.losses.fused._chunks import BUDGET, Chunks, Head
from potstill.losses.fused.lazy import LazyLogits

# Tiles alive at a time: logits, their softmax, a copy, and the bend of a cap.
_COPIES = 4


class TokenLogProbs(NamedTuple):
    """What a model says of given words, 0 at masked positions."""

    log_probs: Tensor
    """log q of each given word, shaped like ``ids``, in nats."""
    logsumexp: Tensor
    """log Σ exp(logit / T) of every position, ``(...)``."""


def token_log_probs(
    lazy: LazyLogits,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    budget: int = BUDGET,
) -> TokenLogProbs:
    """Return log-probabilities of given words, one or several at each position, without forming all logits.

    Differentiable in hidden states and head, whatever is done to the results: logits are computed a second time in the
    backward pass. Where only a sum over rows is wanted, ``fused_terms`` computes them once.

    Args:
        lazy: Hidden states ``(..., D)`` and the output head.
        ids: Numbers of words, ``(...)`` or ``(..., K)``; those at masked positions are not looked at.
        temperature: T; logits are divided by it.
        mask: True at positions that count, ``(...)``; None = all.
        budget: Bytes for logits at a time, see ``fused_terms``.

    Returns:
        ``(log_probs, logsumexp)`` in float32 or better.

    Raises:
        InputError: temperature not above 0; ids that are no words; later, if differentiated twice.
        ShapeError: ids or the mask do not fit.

    Source:
        Textbook definition. A teacher's cached top k needs no more of the student than this.

    Example:
        >>> import torch
        >>> lazy = LazyLogits(torch.ones(2, 3), torch.zeros(8, 3))
        >>> token_log_probs(lazy, torch.tensor([5, 0])).log_probs
        tensor([-2.0794, -2.0794])
    """
    where = "token_log_probs"
    check_positive(temperature, where, "temperature")
    shape = lazy.hidden.shape[:-1]
    check_mask(mask, shape, where, "the leading shape")
    if ids.shape[: len(shape)] != shape or ids.ndim > len(shape) + 1:
        expected = f"{list(shape)} or {[*shape, 'K']}"
        raise ShapeError("ids do not fit", where=where, expected=expected, got=list(ids.shape))
    wide = None if mask is None else mask.reshape(*shape, *[1] * (ids.ndim - len(shape))).expand(ids.shape)
    ids = check_classes(ids, wide, ids.shape, lazy.shape[-1], where)
    picked = None if mask is None else mask.flatten().nonzero().squeeze(-1)
    job = _Job(lazy, ids.reshape(shape.numel(), -1), picked, float(temperature), budget)
    log_probs, total = _TokenLogProbs.apply(lazy.hidden, lazy.weight, lazy.bias, job)
    return TokenLogProbs(log_probs.view(ids.shape), total.view(shape))


class _Job:
    """What forward and backward share."""

    def __init__(self, lazy: LazyLogits, ids: Tensor, picked: Tensor | None, temperature: float, budget: int):
        self.lazy, self.ids, self.picked, self.temperature, self.budget = (
            lazy.detach(),
            ids,
            picked,
            temperature,
            budget,
        )
        self.dtype = lazy.dtype  # in the backward pass autocast may be off
        self.working = torch.promote_types(self.dtype, torch.float32)

    def start(self) -> tuple[Head, Chunks]:
        head = Head(self.lazy, self.picked, self.dtype)
        rows = len(self.ids) if self.picked is None else len(self.picked)
        return head, Chunks(rows, [head.V], [head.dtype], self.working, _COPIES, self.budget, self.lazy.device)

    def numbers(self, own: slice) -> Tensor | slice:
        """Return where the rows of a tile stand among all."""
        return own if self.picked is None else self.picked[own]


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: _Job) -> tuple[Tensor, Tensor]:
        N, working = len(job.ids), job.working
        log_probs = torch.zeros(job.ids.shape, dtype=working, device=hidden.device)
        totals = torch.zeros(N, dtype=working, device=hidden.device)
        head, chunks = job.start()
        with without_autocast(hidden):
            for chunk in chunks:
                product = head.product(head.rows(chunk), chunks.memory("product", *_size(chunk, head), head.dtype))
                for tile in chunks.tiles(chunk):
                    at = job.numbers(slice(chunk.start + tile.start, chunk.start + tile.stop))
                    logits = head.finished(product[tile], _own(chunks, product[tile], job.working))
                    if job.temperature != 1:
                        logits.div_(job.temperature)
                    total = torch.logsumexp(logits, -1)
                    totals[at] = total
                    log_probs[at] = logits.gather(-1, job.ids[at]) - total.unsqueeze(-1)
        ctx.job, ctx.dtypes = job, [None if x is None else x.dtype for x in (hidden, weight, bias)]
        ctx.save_for_backward(hidden, weight, bias, totals)
        return log_probs, totals

    @staticmethod
    def backward(ctx, grad: Tensor, grad_total: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise InputError(
                "token_log_probs cannot be differentiated twice",
                where="backward",
                hint="Compute log-probabilities from plain logits, or do without create_graph.",
            )
        hidden, weight, bias, totals = ctx.saved_tensors
        job, working = ctx.job, ctx.job.working
        head, chunks = job.start()
        V, D = head.V, hidden.shape[-1]
        d_hidden = hidden.new_zeros(len(job.ids), D) if ctx.needs_input_grad[0] else None
        d_weight = weight.new_zeros(weight.shape, dtype=working) if ctx.needs_input_grad[1] else None
        d_bias = bias.new_zeros(bias.shape, dtype=working) if ctx.needs_input_grad[2] else None
        factor = head.scale / job.temperature
        of_softmax = grad_total - grad.sum(-1)
        with without_autocast(hidden):
            for chunk in chunks:
                rows = head.rows(chunk)
                product = head.product(rows, chunks.memory("product", *_size(chunk, head), head.dtype))
                for tile in chunks.tiles(chunk):
                    at = job.numbers(slice(chunk.start + tile.start, chunk.start + tile.stop))
                    logits = head.finished(product[tile], _own(chunks, product[tile], working))
                    bend = None
                    if head.softcap is not None:
                        bend = torch.div(logits, head.softcap, out=chunks.scratch("bend", logits))
                        bend.square_().neg_().add_(1)
                    if job.temperature != 1:
                        logits.div_(job.temperature)
                    slope = logits.sub_(totals[at].unsqueeze(-1)).exp_().mul_(of_softmax[at].unsqueeze(-1))
                    slope.scatter_add_(-1, job.ids[at], grad[at])
                    if bend is not None:
                        slope.mul_(bend)
                    if slope.data_ptr() != product[tile].data_ptr():
                        product[tile].copy_(slope)
                at = job.numbers(chunk)
                if d_hidden is not None:
                    d_hidden[at] = torch.mm(product, head.weight).to(working).mul_(factor).to(d_hidden.dtype)
                if d_weight is not None:
                    d_weight[:V] += torch.mm(product.T, rows).to(working).mul_(factor)
                if d_bias is not None:
                    d_bias[:V] += product.sum(0, dtype=working).mul_(factor)
        grads = zip((d_hidden, d_weight, d_bias), ctx.dtypes)
        d_hidden, d_weight, d_bias = (None if g is None else g.to(dtype) for g, dtype in grads)
        return None if d_hidden is None else d_hidden.view(hidden.shape), d_weight, d_bias, None


def _size(chunk: slice, head: Head) -> tuple[int, int]:
    return chunk.stop - chunk.start, head.V


def _own(chunks: Chunks, tile: Tensor, working: torch.dtype) -> Tensor:
    return tile if tile.dtype == working else chunks.memory("finished", *tile.shape, working)
