"""What the losses on attention maps share: checked maps, masks, a KL that keeps its digits, one value per sample."""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import (
    REDUCTIONS,
    Reduction,
    check_choice,
    check_mask,
    check_positive,
    full_pair,
    zero_with_graph,
)

HEAD_REDUCTIONS = ("sum", "mean")
_OFF = 1e-3  # how far from 1 the sum of a row may be, besides the rounding of its type


class Maps:
    """Attention maps of both models in the working precision, masked alike, with the masks that made them.

    Args:
        student: ``(B, Hs, Q, K)`` as the caller gave it.
        teacher: ``(B, Ht, Q, K)``; detached here.
        query_mask: True at query rows that count, ``(B, Q)``; None = all.
        key_mask: True at keys that count, ``(B, K)``; None = all. Rows are divided by what is left of their sum.
        where: Name of the loss, for messages.
    """

    def __init__(
        self, student: Tensor, teacher: Tensor, query_mask: Tensor | None, key_mask: Tensor | None, where: str
    ):
        for side, x in (("student", student), ("teacher", teacher)):
            if x is None:
                raise InputError(
                    f"there is no {side} attention map",
                    where=where,
                    expected="a tensor (B, H, Q, K)",
                    got=None,
                    hint="Fused attention (SDPA, flash) returns no map: tap the layer, or compute the map of its "
                    "queries and keys with potstill.taps.attention_probs.",
                )
        types = student.dtype, teacher.dtype
        student, teacher = full_pair(student, teacher, where)
        _check_shapes(student, teacher, where)
        B, _, Q, K = student.shape
        check_mask(query_mask, torch.Size((B, Q)), where, "(B, Q)")
        check_mask(key_mask, torch.Size((B, K)), where, "(B, K)")
        self.query_mask, self.key_mask = query_mask, key_mask
        student, teacher = self.hide(student), self.hide(teacher)
        _check_rows(student, teacher, types, query_mask is None and key_mask is None, where)
        if key_mask is not None:
            student, teacher = divided_by_sum(student), divided_by_sum(teacher)
        self.student, self.teacher = student, teacher
        # Sums of two rows that differ by no more than this are equal as far as their types can tell.
        self.slack = 8 * max(torch.finfo(kind).eps for kind in types)

    def hide(self, x: Tensor) -> Tensor:
        """Put 0 at masked rows and columns of ``x (B, H, Q, K)``, whatever stands there."""
        if self.query_mask is not None:
            x = x.masked_fill(~self.query_mask[:, None, :, None], 0)
        if self.key_mask is not None:
            x = x.masked_fill(~self.key_mask[:, None, None, :], 0)
        return x

    def mean_over_queries(self, rows: Tensor) -> Tensor:
        """Return the mean of ``rows (B, H, Q)`` over the queries that count, 0 where there are none."""
        if self.query_mask is None:
            return rows.sum(-1) / max(1, rows.shape[-1])
        return rows.sum(-1) / self.query_mask.sum(-1, keepdim=True).clamp_min(1)

    def kl(self, teacher: Tensor, student: Tensor, eps: float) -> Tensor:
        """Return KL(teacher || student) over the last axis of two maps made of these, floored at ``eps``."""
        return _FlooredKL.apply(teacher, student, eps, self.slack)


def check_options(reduction: str, head_reduction: str, eps: float, where: str) -> None:
    """Refuse what no loss on maps takes."""
    check_choice(reduction, REDUCTIONS, where, "reduction")
    check_choice(head_reduction, HEAD_REDUCTIONS, where, "head_reduction")
    check_positive(eps, where, "eps")


def over_heads(values: Tensor, head_reduction: str) -> Tensor:
    """Reduce ``(B, H)`` to one value per sample."""
    return values.mean(1) if head_reduction == "mean" else values.sum(1)


def over_samples(values: Tensor, reduction: Reduction) -> Tensor:
    """Reduce ``(B,)``. The mean is over all samples: one without queries counts, with 0."""
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    return values.mean() if len(values) else zero_with_graph(values)


def divided_by_sum(rows: Tensor) -> Tensor:
    """Divide each row by its sum; a row of zeros stays one, with a finite gradient."""
    total = rows.sum(-1, keepdim=True)
    return rows / torch.where(total > 0, total, torch.ones_like(total))


def unit(vectors: Tensor) -> Tensor:
    """Divide each vector by its L2 norm; zeros stay zeros, with a finite gradient."""
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(norm > 0, norm, torch.ones_like(norm))


def _check_shapes(student: Tensor, teacher: Tensor, where: str) -> None:
    if student.ndim != 4 or teacher.ndim != 4:
        raise ShapeError(
            "attention maps need four axes",
            where=where,
            expected="student (B, Hs, Q, K) and teacher (B, Ht, Q, K)",
            got=f"student {list(student.shape)}, teacher {list(teacher.shape)}",
            hint="Maps already averaged over heads have one head: map[:, None].",
        )
    for axis, letter in ((0, "B"), (2, "Q"), (3, "K")):
        if student.shape[axis] != teacher.shape[axis]:
            raise ShapeError(
                f"attention maps differ in {letter}",
                where=where,
                expected=f"as many {('samples', '', 'queries', 'keys')[axis]} in both models",
                got=f"student {list(student.shape)}, teacher {list(teacher.shape)}",
                hint="Patch grids of different size: potstill.losses.resize_attention." if axis else None,
            )
    for side, x in (("student", student), ("teacher", teacher)):
        if x.shape[1] == 0:
            raise ShapeError(f"{side} has no head", where=where, expected="H >= 1", got=list(x.shape))


def _check_rows(student: Tensor, teacher: Tensor, types: tuple, whole: bool, where: str) -> None:
    """Refuse what cannot be probabilities. NaN passes: it has to reach the value, where training looks for it."""
    sides = ("student", student, types[0]), ("teacher", teacher, types[1])
    # Each entry of a row that sums to 1 is off by at most half a unit in its last place, and so is their sum.
    allowed = {side: _OFF + torch.finfo(kind).eps / 2 for side, _, kind in sides}
    found = []
    for side, x, _ in sides:
        found.append((x < 0).any())
        found.append(((x.detach().sum(-1) - 1).abs() > allowed[side]).any() if whole else found[-1].new_zeros(()))
    wrong = torch.stack(found).tolist()  # one wait for the device
    for (side, x, _), negative, off in zip(sides, wrong[::2], wrong[1::2]):
        if negative:
            raise InputError(
                f"{side} has negative entries", where=where, expected="probabilities", hint="Apply softmax first."
            )
        if off:
            sums = x.detach().sum(-1)
            raise InputError(
                f"rows of the {side} do not sum to 1",
                where=where,
                expected=f"1 ± {allowed[side]:.4f}",
                got=f"sums from {sums.min().item():.4f} to {sums.max().item():.4f}",
                hint="Pass probabilities after softmax and before dropout; if keys are padding, pass key_mask.",
            )


class _FlooredKL(torch.autograd.Function):
    """The sum over k of p (log max(p, eps) - log max(q, eps)), without losing the digits of a small value.

    Summed as p (r - log(1 + r)) with r = q / p - 1, whose terms are never below 0, plus the sum of p - q, which is 0
    for distributions. In half precision and in float32 that last sum is mere rounding and larger than the divergence of
    two close rows; up to ``slack`` it is left out. The gradient is that of the formula in the first line.
    """

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        p, q, ctx.eps, _ = inputs
        ctx.save_for_backward(p, q)

    @staticmethod
    def forward(p: Tensor, q: Tensor, eps: float, slack: float) -> Tensor:
        floored_p, floored_q = p.clamp_min(eps), q.clamp_min(eps)
        r = (floored_q - floored_p).div_(floored_p)
        log_ratio = torch.where(r > -0.5, r.log1p(), (floored_q / floored_p).log())  # 1 + r is 0 for q far below p
        rest = q - floored_q * (p / floored_p)  # 0 but where p or q is below eps
        rows = (r - log_ratio).mul_(p).add_(rest).sum(-1)
        excess = (q - p).sum(-1)
        return rows - excess.masked_fill(excess.abs() <= slack, 0)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor | None, None, None]:
        p, q = ctx.saved_tensors
        to_q = -grad.unsqueeze(-1) * (p / q.clamp_min(ctx.eps)).masked_fill(q < ctx.eps, 0)
        return None, to_q, None, None
