"""Some rows of lazy logits at a time, in memory that is used again and again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from potstill.errors import InputError
from potstill.losses.fused.lazy import LazyLogits

BUDGET = 2**28
"""Bytes for the logits that exist at a time: what the recipe reference calls 256 MB."""

# Elements that are worked on at a time. On a CPU they should stay in the cache through all passes over them.
_TILE_CPU, _TILE = 2**21, 2**25


class Chunks:
    """Cuts the rows that count into chunks (one matrix product each) and those into tiles (one softmax each).

    Args:
        rows: How many rows there are.
        widths: V of each matrix of logits, the student's first.
        dtypes: In which each is computed.
        working: Precision of softmax and sums.
        copies: Of a tile that the loss needs beside the logits.
        budget: Bytes for all of it.
        device: Where.
    """

    def __init__(
        self,
        rows: int,
        widths: list[int],
        dtypes: list[torch.dtype],
        working: torch.dtype,
        copies: int,
        budget: int,
        device: torch.device,
    ):
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
            raise InputError("no number of bytes", where="budget", expected="a whole number above 0", got=budget)
        self.rows, self.working, self.device = rows, working, device
        row_bytes = sum(n * dtype.itemsize for n, dtype in zip(widths, dtypes))
        tile_bytes = max(1, copies * max(widths) * working.itemsize)
        elements = _TILE_CPU if device.type == "cpu" else _TILE
        self.tile = max(1, min(elements // max(widths), budget // 2 // tile_bytes, rows))
        self.size = max(1, min((budget - self.tile * tile_bytes) // row_bytes, rows))
        self.tile = min(self.tile, self.size)
        self._memory: dict[str, Tensor] = {}

    def __iter__(self) -> Iterator[slice]:
        """Yield the chunks as slices of the rows that count."""
        for start in range(0, self.rows, self.size):
            yield slice(start, min(start + self.size, self.rows))

    def tiles(self, chunk: slice) -> Iterator[slice]:
        """Yield the tiles of a chunk, counted from its start."""
        n = chunk.stop - chunk.start
        for start in range(0, n, self.tile):
            yield slice(start, min(start + self.tile, n))

    def scratch(self, name: str, like: Tensor) -> Tensor:
        """Return memory shaped like a tensor, contiguous, and of its dtype; the next call by that name gets it too."""
        return self.memory(name, like.shape[0], like.shape[1], like.dtype)

    def memory(self, name: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Return memory of that shape by a name."""
        kept = self._memory.get(name)
        if kept is None or kept.numel() < rows * columns or kept.dtype != dtype:
            self._memory[name] = kept = torch.empty(rows * columns, dtype=dtype, device=self.device)
        return kept[: rows * columns].view(rows, columns)


class Head:
    """The output head of lazy logits, ready for products in one dtype.

    Args:
        lazy: Its logits.
        picked: Numbers of the rows that count, or None for all.
        dtype: That of the products; None = as the logits have it.
    """

    def __init__(self, lazy: LazyLogits, picked: Tensor | None, dtype: torch.dtype | None = None):
        self.dtype, self.V, self.picked = dtype or lazy.dtype, lazy.shape[-1], picked
        self.scale, self.softcap = lazy.scale, lazy.softcap
        self.hidden = lazy.hidden.detach().reshape(-1, lazy.hidden.shape[-1])
        self.weight = lazy.weight.detach()[: self.V].to(self.dtype)
        self.bias = None if lazy.bias is None else lazy.bias.detach()[: self.V].to(self.dtype)

    def rows(self, chunk: slice) -> Tensor:
        """Return the hidden states of a chunk, ``[C, D]``."""
        rows = self.hidden[chunk] if self.picked is None else self.hidden[self.picked[chunk]]
        return rows.to(self.dtype)

    def product(self, rows: Tensor, out: Tensor) -> Tensor:
        """Fill ``out [C, V]`` with rows times head."""
        if self.bias is None:
            return torch.mm(rows, self.weight.T, out=out)
        return torch.addmm(self.bias, rows, self.weight.T, out=out)

    def finished(self, tile: Tensor, own: Tensor) -> Tensor:
        """Return the logits of a tile in working precision, in the memory ``own``, which may be the tile itself."""
        if own is not tile:
            own.copy_(tile)
        if self.scale != 1:
            own.mul_(self.scale)
        return own if self.softcap is None else own.div_(self.softcap).tanh_().mul_(self.softcap)
