"""Several losses on the same lazy logits, value and gradient in one pass over the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import by_rows as by_rows  # users put it on losses of their own
from potstill.losses._common import check_choice, check_classes, check_mask, is_by_rows, without_autocast
from potstill.losses._top_k import TopK
from potstill.losses.fused._chunks import BUDGET
from potstill.losses.fused._one_pass import Pass, places, rows_of
from potstill.losses.fused.lazy import LazyLogits
from potstill.losses.top_k_targets import cached_loss

# Has a row for each of the student's: a ``shape``, and an index of the leading axes.
Rows = LazyLogits | Tensor | TopK


@dataclass(frozen=True, eq=False)
class Term:
    """One loss on the student's logits.

    Attributes:
        loss: A loss whose rows do not influence each other: ``kd_kl``, ``reverse_kl``, ``generalized_jsd``,
            ``tv_distance``, ``skew_kl``, ``skew_reverse_kl``, ``dkd``, ``torch.nn.functional.cross_entropy``, or one
            of your own under ``potstill.losses.fused.by_rows``.
        rows: What it takes after the student's logits: ``LazyLogits``, or what has a row for each of the student's
            (tensors of logits or labels; ``TopK`` of a cache, which turns the loss into ``cached_loss``). No gradient
            flows into them.
        options: Its further keyword arguments.
        factor: Its weight in the sum: a number or a scalar tensor, without a gradient.
        mask: True at rows that count, ``(...)``; None = all, of labels those that are not -100.
        weights: Factor of every row, ``(...)``, within the value too; None = 1.
    """

    loss: Callable[..., Tensor]
    rows: Sequence[Rows]
    options: Mapping[str, Any] = field(default_factory=dict)
    factor: float | Tensor = 1.0
    mask: Tensor | None = None
    weights: Tensor | None = None

    @property
    def name(self) -> str:
        """The name of the loss."""
        return getattr(self.loss, "__name__", type(self.loss).__name__)


def fused_terms(student: LazyLogits, terms: Sequence[Term], *, budget: int = BUDGET) -> tuple[Tensor, Tensor]:
    """Sum losses over rows without forming the logits of all of them.

    For vocabularies so large that a matrix [tokens x V] hurts. The gradient is formed in the forward pass, chunk by
    chunk, so each product with a head is computed once; the price is that nothing can be done to single rows after it,
    and that it cannot be differentiated twice. Where V is small, plain losses are as fast.

    Args:
        student: Hidden states ``(..., D)`` and the output head.
        terms: What to compute on its logits. Teachers that several terms share are computed once.
        budget: Bytes for logits and what the losses make of them, at a time. The gradients of weight and hidden
            states, which any way of training has to hold, come on top.

    Returns:
        The sum of factor · Σ value over all terms, a scalar with a graph; and Σ value of every term without one,
        ``[terms]``. Products are computed in the dtype that the head would have (autocast included), softmax and sums
        in float32 or better, and the gradient of the weight is summed in it.

    Raises:
        InputError: A loss couples rows, has no reduction, or refuses its options; a budget is no number of bytes;
            later, if the result is differentiated twice.
        ShapeError: Rows, masks or vocabularies do not fit.

    Source:
        The gradient-in-forward idea is that of fused linear cross-entropy (Liger-Kernel, 2024; Wijmans et al., "Cut
        Your Losses", ICLR 2025). Here it works on any loss by rows, and on several at once.

    Example:
        >>> import torch
        >>> from potstill.losses import kd_kl
        >>> lazy = LazyLogits(torch.zeros(3, 4), torch.ones(8, 4))
        >>> labels = torch.tensor([5, 1, -100])
        >>> terms = [Term(F.cross_entropy, (labels,), factor=0.5), Term(kd_kl, (lazy,))]
        >>> [round(value, 4) for value in fused_terms(lazy, terms)[1].tolist()]
        [4.1589, 0.0]
    """
    if not terms:
        raise InputError("there is no term", where="fused_terms", expected="at least one Term")
    if not isinstance(student, LazyLogits):
        raise InputError("the student's logits are there already", where="fused_terms", expected="LazyLogits")
    shape = student.hidden.shape[:-1]
    terms = [_of_kept_words(term) for term in terms]
    for term in terms:
        _check(student, term, shape)
    masks = [_mask_of(term) for term in terms]
    for term, mask in zip(terms, masks):
        if term.loss is F.cross_entropy:
            check_classes(term.rows[0], mask, shape, student.shape[-1], term.name)
    job = Pass(student, list(terms), masks, budget)
    return _Fused.apply(student.hidden, student.weight, student.bias, job)


def fused_loss(
    student: LazyLogits,
    teacher: Rows,
    loss: Callable[..., Tensor],
    *,
    mask: Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    budget: int = BUDGET,
    **options: Any,
) -> Tensor:
    """Compute one loss between lazy logits without forming those of all rows.

    Args:
        student: Hidden states ``(..., D)`` and the output head.
        teacher: The same of the teacher, of any width; or its logits, ``(..., V)``; or whatever the loss compares
            logits with, such as the labels of ``torch.nn.functional.cross_entropy``.
        loss: See ``Term``.
        mask: True at rows that count, ``(...)``; None = all.
        reduction: "mean" over the rows that count, or "sum". There is no "none": the gradient is formed before anyone
            could weigh rows. ``Term.weights`` weighs them beforehand.
        budget: Bytes for logits at a time, see ``fused_terms``.
        options: Further keyword arguments of the loss.

    Returns:
        What the plain loss returns, a scalar.

    Raises:
        InputError: As ``fused_terms``; unknown reduction.
        ShapeError: As ``fused_terms``.

    Source:
        See ``fused_terms``.

    Example:
        >>> import torch
        >>> from potstill.losses import kd_kl
        >>> hidden, teacher = torch.eye(4), torch.ones(4, 2)
        >>> lazy = LazyLogits(hidden, torch.ones(10, 4)), LazyLogits(teacher, torch.eye(10, 2))
        >>> value, plain = fused_loss(*lazy, kd_kl), kd_kl(lazy[0].whole(), lazy[1].whole())
        >>> torch.allclose(value, plain)
        True
    """
    check_choice(reduction, ("mean", "sum"), "fused_loss", "reduction")
    term = Term(loss, (teacher,), options, mask=mask)
    total = fused_terms(student, [term], budget=budget)[0]
    if reduction == "sum":
        return total
    counted = _mask_of(term)
    return total / (max(1, student.hidden.shape[:-1].numel()) if counted is None else counted.sum().clamp_min(1))


def _of_kept_words(term: Term) -> Term:
    """Let a loss on a teacher of whom some words were kept be the one made for that."""
    if term.loss is cached_loss or not any(isinstance(row, TopK) for row in term.rows):
        return term
    return replace(term, loss=cached_loss, rows=term.rows[:1], options={**term.options, "loss": term.name})


def _mask_of(term: Term) -> Tensor | None:
    if term.mask is None and term.loss is F.cross_entropy:
        return term.rows[0] != term.options.get("ignore_index", -100)
    return term.mask


def _check(student: LazyLogits, term: Term, shape: torch.Size) -> None:
    """Refuse what the loss itself would refuse, before any product, by showing it no rows at all."""
    where = term.name
    if not (is_by_rows(term.loss) or term.loss is F.cross_entropy):
        raise InputError(
            "its rows may influence each other, so it cannot be computed some rows at a time",
            where=where,
            hint="Compute it on plain logits. If every row's value depends on that row alone, put "
            "potstill.losses.fused.by_rows on the function.",
        )
    for row in term.rows:
        if row.shape[: len(shape)] != shape:
            raise ShapeError(
                "leading shapes do not fit", where=where, expected=f"{list(shape)}, ...", got=list(row.shape)
            )
    check_mask(term.mask, shape, where, "the leading shape")
    if term.weights is not None and term.weights.shape != shape:
        raise ShapeError("weights do not fit", where=where, expected=str(list(shape)), got=list(term.weights.shape))
    if term.loss is not F.cross_entropy:
        nothing = torch.zeros(0, student.shape[-1], device=student.device)
        rows_of(term, nothing, [_no_rows(row, shape) for row in term.rows])


def _no_rows(row: Rows, shape: torch.Size) -> Any:
    if isinstance(row, LazyLogits):
        return torch.zeros(0, row.shape[-1], device=row.device)
    return row[places(torch.zeros(0, dtype=torch.long), shape)]


class _Fused(torch.autograd.Function):
    """Forms the gradients in the forward pass; backward only scales them."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: Pass) -> tuple[Tensor, Tensor]:
        # Under no_grad needs_input_grad is True all the same.
        wanted = [job.with_grad and x is not None and x.requires_grad for x in (hidden, weight, bias)]
        with without_autocast(hidden):
            values, ctx.factor, *grads = job.run(*wanted)
        ctx.grads = grads
        ctx.shape, ctx.dtypes = hidden.shape, [None if x is None else x.dtype for x in (hidden, weight, bias)]
        weighted = [v if w is None else v * w.squeeze(-1) for v, w in zip(values, job.weights)]
        totals = torch.stack([v.sum() for v in weighted])
        ctx.mark_non_differentiable(totals)
        return (totals * job.factors.to(totals.dtype)).sum(), totals

    @staticmethod
    def backward(ctx, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise InputError(
                "a fused loss cannot be differentiated twice",
                where="backward",
                hint="Compute the loss on plain logits, or do without create_graph.",
            )
        factor = grad * ctx.factor.to(grad.dtype)
        hidden, weight, bias = (
            None if g is None else (g * factor.to(g.dtype)).to(dtype) for g, dtype in zip(ctx.grads, ctx.dtypes)
        )
        return None if hidden is None else hidden.view(ctx.shape), weight, bias, None
