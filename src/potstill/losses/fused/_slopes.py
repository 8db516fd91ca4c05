"""Values and gradients of losses in closed form, some rows at a time, in the memory of what they are given.

A slope is called ``slope(logits, *rows, scratch=..., **options)`` with student logits ``[R, V]`` in working precision
and what the loss compares them with. It overwrites both, and returns a value per row and, in the memory of ``logits``,
the gradient of every value in its row. Losses without a slope go through autograd, with several times the memory.

Notation: p teacher, q student, both at temperature T. With f = ∂L/∂q, the gradient in the logits is q (f - Σ q f) / T.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.losses._top_k import TopK
from potstill.losses.forward_kl import kd_kl
from potstill.losses.jensen_shannon import generalized_jsd
from potstill.losses.reversed_kl import reverse_kl
from potstill.losses.top_k_targets import _rows, cached_loss
from potstill.losses.total_variation import tv_distance

# Stands for log 0, as of a banned word: 0 times it is 0, where 0 times infinity is NaN.
_LOG_ZERO = -1e30
# Sums of it stand for infinity again.
_HUGE = 1e25

Scratch = Callable[[str, Tensor], Tensor]
"""Gives memory by a name, shaped like a tensor; the next rows get the same memory again."""
Slope = Callable[..., tuple[Tensor, Tensor]]


def log_softmax_(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Replace logits by log softmax(logits / T)."""
    if temperature != 1:
        logits.div_(temperature)
    torch.log_softmax(logits, -1, out=logits)
    return logits.clamp_min_(_LOG_ZERO)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a, b)


def _priced(values: Tensor) -> Tensor:
    """Give a word that one side bans and the other may write its true price."""
    return values.masked_fill_(values > _HUGE, math.inf)


def _through_softmax(f: Tensor, q: Tensor, mean: Tensor, factor: float) -> Tensor:
    """Turn f into q (f - Σ q f) times a factor."""
    f.sub_(mean.unsqueeze(-1)).mul_(q)
    return f if factor == 1 else f.mul_(factor)


def forward_kl_slope(
    logits: Tensor, teacher: Tensor, *, scratch: Scratch, temperature: float, scale_by_t2: bool
) -> tuple[Tensor, Tensor]:
    """KL(p || q), whose gradient is (q - p) / T."""
    log_q, log_p = log_softmax_(logits, temperature), log_softmax_(teacher, temperature)
    p = torch.exp(log_p, out=scratch("p", log_p))
    values = _priced(_dot(p, log_p.sub_(log_q)))
    gap = log_q.exp_().sub_(p)
    # p and q sum to 1, so this adds only what rounding took: close to the teacher, most of the value.
    values += gap.sum(-1)
    slope = temperature if scale_by_t2 else 1 / temperature
    return values * temperature**2 if scale_by_t2 else values, gap if slope == 1 else gap.mul_(slope)


def reverse_kl_slope(
    logits: Tensor, teacher: Tensor, *, scratch: Scratch, temperature: float, scale_by_t2: bool
) -> tuple[Tensor, Tensor]:
    """KL(q || p): f = log q - log p."""
    log_q, log_p = log_softmax_(logits, temperature), log_softmax_(teacher, temperature)
    q = torch.exp(log_q, out=scratch("q", log_q))
    f = log_q.sub_(log_p)
    mean = _dot(q, f)
    values = _priced(mean + log_p.exp_().sub_(q).sum(-1))  # again what rounding took
    grad = _through_softmax(f, q, mean, temperature if scale_by_t2 else 1 / temperature)
    return values * temperature**2 if scale_by_t2 else values, grad


def jsd_slope(
    logits: Tensor, teacher: Tensor, *, scratch: Scratch, beta: float, temperature: float
) -> tuple[Tensor, Tensor]:
    """β KL(p || m) + (1 - β) KL(q || m) with m = β p + (1 - β) q: f = (1 - β) (log q - log m)."""
    if beta in (0, 1):
        slope = reverse_kl_slope if beta else forward_kl_slope
        return slope(logits, teacher, scratch=scratch, temperature=temperature, scale_by_t2=False)
    log_q, log_p = log_softmax_(logits, temperature), log_softmax_(teacher, temperature)
    q, p = torch.exp(log_q, out=scratch("q", log_q)), torch.exp(log_p, out=scratch("p", log_p))
    mixed = torch.lerp(q, p, beta, out=scratch("mixed", p))
    log_m = mixed.clamp_min_(torch.finfo(p.dtype).tiny).log_()
    mean = _dot(q, f := log_q.sub_(log_m).mul_(1 - beta))
    values = mean + beta * _dot(p, log_p.sub_(log_m))
    return values, _through_softmax(f, q, mean, 1 / temperature)


def tv_slope(logits: Tensor, teacher: Tensor, *, scratch: Scratch, temperature: float) -> tuple[Tensor, Tensor]:
    """Half the sum of |p - q|: f = sign(q - p) / 2."""
    q, p = log_softmax_(logits, temperature).exp_(), log_softmax_(teacher, temperature).exp_()
    f = torch.sub(q, p, out=scratch("f", q))
    values = 0.5 * torch.linalg.vector_norm(f, 1, -1)
    mean = _dot(q, f.sign_().mul_(0.5))
    f.sub_(mean.unsqueeze(-1))
    return values, q.mul_(f) if temperature == 1 else q.mul_(f).div_(temperature)


def cross_entropy_slope(
    logits: Tensor, labels: Tensor, *, scratch: Scratch, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """- log q of the label, or of all words evenly: the gradient is q minus the target."""
    log_q = log_softmax_(logits)
    labels = labels.unsqueeze(-1)
    values = -log_q.gather(-1, labels).squeeze(-1)
    if label_smoothing:
        values = (1 - label_smoothing) * values - label_smoothing * log_q.mean(-1)
    grad = log_q.exp_()
    if label_smoothing:
        grad -= label_smoothing / grad.shape[-1]
    return _priced(values), grad.scatter_add_(-1, labels, grad.new_full(labels.shape, label_smoothing - 1))


def cached_slope(
    logits: Tensor,
    targets: TopK,
    *,
    scratch: Scratch,
    loss: str,
    mode: str | None,
    temperature: float,
    scale_by_t2: bool | None,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """From kept words only: g at each log q of a kept word is g at its logit, less q Σ g everywhere, over T."""
    log_q, ids = log_softmax_(logits, temperature), targets.ids.long()
    with torch.enable_grad():
        known = log_q.gather(-1, ids).requires_grad_()
        values = _rows(known, targets, loss, mode, temperature, scale_by_t2, beta)
        slope = torch.autograd.grad(values.sum(), known)[0].to(logits.dtype)
    grad = log_q.exp_().mul_(-slope.sum(-1, keepdim=True)).scatter_add_(-1, ids, slope)
    return values.detach(), grad if temperature == 1 else grad.div_(temperature)


SLOPES: dict[Callable, Slope] = {
    cached_loss: cached_slope,
    F.cross_entropy: cross_entropy_slope,
    generalized_jsd: jsd_slope,
    kd_kl: forward_kl_slope,
    reverse_kl: reverse_kl_slope,
    tv_distance: tv_slope,
}
