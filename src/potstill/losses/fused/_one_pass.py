"""One pass over the rows that count: the values of all terms, and their gradient, chunk by chunk."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from potstill.losses._top_k import TopK
from potstill.losses.fused._chunks import Chunks, Head
from potstill.losses.fused._slopes import SLOPES, Slope
from potstill.losses.fused.lazy import LazyLogits

if TYPE_CHECKING:
    from potstill.losses.fused.terms import Term

# Copies of a tile that are alive at a time: with a slope, and under autograd.
_OF_A_SLOPE, _OF_AUTOGRAD = 4, 12


class Pass:
    """One pass over the rows that count: the terms, and what is left of it, values and gradients."""

    def __init__(self, student: LazyLogits, terms: list[Term], masks: list[Tensor | None], budget: int):
        self.student, self.terms, self.budget = student, terms, budget
        self.device, self.N = student.device, student.hidden.shape[:-1].numel()
        keep = None if any(mask is None for mask in masks) else torch.stack([m.flatten() for m in masks]).any(0)
        self.picked = None if keep is None else keep.nonzero().squeeze(-1)
        self.rows = self.N if keep is None else len(self.picked)
        # On the host, once: whether a term counts a row decides which operations are started.
        self.counted = [None if m is None else self._own(m).cpu() for m in masks]
        self.counted = [None if c is None or c.all() else c for c in self.counted]
        self.slopes = [_slope_of(term) for term in terms]
        self.weights = [None if t.weights is None else self._own(t.weights.detach()).unsqueeze(-1) for t in terms]
        self.factors = torch.stack([_as_tensor(t.factor, self.device) for t in terms])
        self.with_grad = torch.is_grad_enabled()  # inside a Function it is always off
        heads: dict[int, Head] = {id(student): Head(student, self.picked)}
        for term in terms:
            for row in term.rows:
                if isinstance(row, LazyLogits) and id(row) not in heads:
                    heads[id(row)] = Head(row, self.picked)
        self.heads = heads
        dtypes = [h.dtype for h in heads.values()]
        self.working = torch.float64 if torch.float64 in dtypes else torch.float32
        copies = max(_OF_AUTOGRAD if slope is None else _OF_A_SLOPE for slope, _, _ in self.slopes)
        copies += 3 * (len(terms) > 1)
        widths = [h.V for h in heads.values()]
        self.chunks = Chunks(self.rows, widths, dtypes, self.working, copies, budget, self.device)

    def _places(self, own: slice, kept: Tensor | None) -> tuple[Tensor, ...]:
        """Return the indices, one for each leading axis, of the rows of a tile, or of some of them."""
        if self.picked is None:
            numbers = torch.arange(own.start, own.stop, device=self.device)
        else:
            numbers = self.picked[own]
        return places(numbers if kept is None else numbers[kept], self.student.hidden.shape[:-1])

    def _own(self, row: Tensor) -> Tensor:
        row = row.flatten()
        return row if self.picked is None else row[self.picked]

    def run(self, for_hidden: bool, for_weight: bool, for_bias: bool) -> tuple[Tensor, ...]:
        """Return Σ value of every term, and the gradients of hidden states, weight and bias."""
        head, chunks, working = self.heads[id(self.student)], self.chunks, self.working
        with_grad = for_hidden or for_weight or for_bias
        biggest = self.factors.abs().max()
        self.shares = self.factors / torch.where(biggest > 0, biggest, 1)
        values = torch.zeros(len(self.terms), self.rows, dtype=working, device=self.device)
        D = head.hidden.shape[-1]
        d_hidden = self.student.hidden.new_zeros(self.N, D) if for_hidden else None
        d_weight = self.student.weight.new_zeros(self.student.weight.shape, dtype=working) if for_weight else None
        d_bias = self.student.bias.new_zeros(self.student.bias.shape, dtype=working) if for_bias else None
        for chunk in chunks:
            n = chunk.stop - chunk.start
            products = {}
            for i, (key, one) in enumerate(self.heads.items()):
                rows = one.rows(chunk)
                products[key] = one.product(rows, chunks.memory(f"product {i}", n, one.V, one.dtype))
            for tile in chunks.tiles(chunk):
                own = slice(chunk.start + tile.start, chunk.start + tile.stop)
                self._tile({key: x[tile] for key, x in products.items()}, own, values, with_grad)
            if not with_grad:
                continue
            slope, rows = products[id(self.student)], head.rows(chunk)
            factor = self._row_factor(chunk)
            if d_hidden is not None:
                found = torch.mm(slope, head.weight).to(working)
                found = (found if factor is None else found.mul_(factor)).to(d_hidden.dtype)
                if self.picked is None:
                    d_hidden[chunk] = found
                else:
                    d_hidden[self.picked[chunk]] = found
            if d_weight is not None:
                rows = rows if factor is None else (rows * factor).to(head.dtype)
                if head.dtype == working:
                    d_weight[: head.V].addmm_(slope.T, rows)
                else:
                    d_weight[: head.V] += torch.mm(slope.T, rows)
            if d_bias is not None:
                ones = torch.ones(n, 1, dtype=working, device=self.device) if factor is None else factor.expand(n, 1)
                d_bias[: head.V] += torch.mm(slope.T, ones.to(head.dtype)).squeeze(-1)
        return values, biggest, d_hidden, d_weight, d_bias

    def _row_factor(self, chunk: slice) -> Tensor | None:
        """Return what the slopes of a chunk lack, ``[C, 1]`` or a scalar: it costs less on D columns than on V."""
        factor = None
        if self.student.scale != 1:
            factor = torch.tensor(self.student.scale, dtype=self.working, device=self.device)
        if len(self.terms) == 1 and self.weights[0] is not None:
            weights = self.weights[0][chunk].to(self.working)
            factor = weights if factor is None else factor * weights
        if len(self.terms) == 1:
            share = self.shares[0].to(self.working)  # 1, -1 or 0
            factor = share if factor is None else share * factor
        return factor

    def _tile(self, products: dict[int, Tensor], own: slice, values: Tensor, with_grad: bool) -> None:
        """Leave the values of a tile's rows in ``values``, and the slope in the student's logits in their place."""
        head, target = self.heads[id(self.student)], products[id(self.student)]
        finished = {}
        for i, (key, tile) in enumerate(products.items()):
            same = tile.dtype == self.working
            finished[key] = self.heads[key].finished(tile, tile if same else self._scratch(f"finished {i}", tile))
        logits = finished[id(self.student)]
        bend = None
        if with_grad and head.softcap is not None:
            bend = torch.div(logits, head.softcap, out=self._scratch("bend", logits)).square_().neg_().add_(1)
        total = None
        for i in range(len(self.terms)):
            found = self._one(i, finished, own, values, with_grad)
            if not with_grad or found is None:
                continue
            slope, kept = found
            if len(self.terms) == 1:
                total = slope
                continue
            slope = slope.mul_(self.shares[i].to(self.working))
            if self.weights[i] is not None:
                slope.mul_(self.weights[i][own][slice(None) if kept is None else kept])
            if total is None:
                total = self.chunks.scratch("total", logits).zero_()
            if kept is None:
                total.add_(slope)
            else:
                total.index_add_(0, kept, slope)
        if with_grad:
            total = target.zero_() if total is None else total
            if bend is not None:
                total.mul_(bend)
            if total is not target:
                target.copy_(total)

    def _one(
        self, i: int, finished: dict[int, Tensor], own: slice, values: Tensor, with_grad: bool
    ) -> tuple[Tensor, Tensor | None] | None:
        """Write the values of one term; return its slope, and the rows of the tile it is on (None = all)."""
        logits, kept = finished[id(self.student)], None
        counted = self.counted[i]
        if counted is not None and not bool((here := counted[own]).all()):
            kept = here.nonzero().squeeze(-1).to(self.device)
            if not len(kept):
                return None
        alone = len(self.terms) == 1
        rows = []
        for k, row in enumerate(self.terms[i].rows):
            if isinstance(row, LazyLogits):
                rows.append(self._copy(f"row {k}", finished[id(row)], kept, alone))
            else:
                row = row[self._places(own, kept)]
                # A slope overwrites what it is given; taking rows by their numbers has made a copy.
                is_real = isinstance(row, Tensor) and row.is_floating_point()
                rows.append(row.detach().to(self.working) if is_real else row)
        logits = self._copy("logits", logits, kept, alone)
        found, slope = self._slope(i, logits, rows, with_grad)
        if kept is None:
            values[i, own] = found
        else:
            values[i, own.start + kept] = found
        return slope, kept

    def _copy(self, name: str, tile: Tensor, kept: Tensor | None, alone: bool) -> Tensor:
        """Return rows of a tile that may be overwritten."""
        if kept is not None:
            return tile[kept]
        return tile if alone else self.chunks.scratch(name, tile).copy_(tile)

    def _slope(self, i: int, logits: Tensor, rows: list[Tensor], with_grad: bool) -> tuple[Tensor, Tensor | None]:
        slope, options, n = self.slopes[i]
        if slope is None:
            with torch.enable_grad():
                logits = logits.detach().requires_grad_()
                found = rows_of(self.terms[i], logits, rows)
                grad = torch.autograd.grad(found.sum(), logits)[0] if with_grad else None
            return found.detach(), grad
        if n is None:
            return slope(logits, *rows, scratch=self.chunks.scratch, **options)
        found, _ = slope(logits[:, :n], *(row[:, :n] for row in rows), scratch=self.chunks.scratch, **options)
        logits[:, n:] = 0
        return found, logits

    def _scratch(self, name: str, tile: Tensor) -> Tensor:
        return self.chunks.memory(name, *tile.shape, self.working)


def places(numbers: Tensor, shape: torch.Size) -> tuple[Tensor, ...]:
    """Return what picks rows by their numbers out of anything that can be indexed by its leading axes."""
    return torch.unravel_index(numbers, shape) if len(shape) > 1 else (numbers,)


def rows_of(term: Term, logits: Tensor, rows: Sequence[Tensor]) -> Tensor:
    """Return the value of every row, as the loss itself computes it."""
    return term.loss(logits, *rows, reduction="none", **term.options)


def _slope_of(term: Term) -> tuple[Slope | None, dict[str, Any], int | None]:
    """Return the slope of a term, the options it takes, and how many words both sides are cut to; or no slope."""
    slope = SLOPES.get(term.loss)
    if slope is None:
        return None, {}, None
    options = dict(term.options)
    n = options.pop("shared_vocab", None)
    taken = [p.name for p in inspect.signature(slope).parameters.values() if p.kind is p.KEYWORD_ONLY]
    taken.remove("scratch")
    if not options.keys() <= set(taken) or (n is not None and any(isinstance(row, TopK) for row in term.rows)):
        return None, {}, None
    defaults = inspect.signature(term.loss).parameters
    return slope, {name: options.get(name, defaults[name].default) for name in taken}, n


def _as_tensor(factor: float | Tensor, device: torch.device) -> Tensor:
    dtype = torch.float64 if device.type == "cpu" else torch.float32
    return torch.as_tensor(factor, dtype=dtype, device=device).detach()
