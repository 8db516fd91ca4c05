"""One model run over batches with its attention maps read, and with each map what its queries and keys are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from potstill.evaluate.attention_axes import (
    VISUAL,
    Axis,
    attention_distance,
    axis_of,
    grid_side,
    places,
    vocabulary_sizes,
)
from potstill.evaluate.batches import IGNORED
from potstill.taps import Tap, Taps, find_attention
from potstill.taps.attention import kind_by_name
from potstill.taps.inputs import model_inputs


@dataclass
class Seen:
    """What one attention module did with one batch.

    Attributes:
        queries: What the rows of the map are.
        keys: What its columns are; of cross-attention followed through a pooler, the patches.
        is_self: Queries and keys are the same tokens.
        words: Ids of the words the module read last, ``[R, T]``; None = none.
        distance: Mean distance of every head, ``[R, H]``; None where it is not defined.
        maps: ``[R, H, Q, K]``, as the model made them; None where only the distance was asked for.
    """

    queries: Axis
    keys: Axis
    is_self: bool
    words: Tensor | None
    distance: Tensor | None
    maps: Tensor | None


class WatchedModel:
    """A model with taps on its attention; a context manager that takes them off.

    Args:
        model: The model, in eval mode.
        maps: Taps of the maps wanted.
        distances: Taps of which only the distance is wanted.
        inputs: Batch keys that the model takes; None = those its ``forward`` names.
    """

    def __init__(self, model: nn.Module, maps: Iterable[str], distances: Iterable[str], inputs: Sequence[str] | None):
        self.model, self.side = model, grid_side(model)
        self._kept = list(dict.fromkeys(maps))
        self._inputs = model_inputs(model, inputs)
        self._words: Tensor | None = None
        self._batch: Mapping[str, Any] = {}
        self._seen: dict[str, Seen] = {}
        self._pooled: Tensor | None = None  # [N, queries, S]
        taps = list(dict.fromkeys([*self._kept, *distances]))
        self._paths = {tap: find_attention(model, Tap.parse(tap).path, Tap.parse(tap).kind) for tap in taps}
        reduce = {tap: partial(self._see, tap) for tap in taps}
        pooler = getattr(model, "memory_attention", None)
        if pooler is not None and any(self._is_cross(tap) for tap in self._kept):
            taps.append(f"{pooler}@attention.head_mean")
            reduce[taps[-1]] = self._see_pooler
        self._handles = []
        self._taps = Taps(model, taps, reduce=reduce)
        sizes = vocabulary_sizes(model)
        for module in model.modules():
            if isinstance(module, nn.Embedding) and (not sizes or module.num_embeddings in sizes):
                self._handles.append(module.register_forward_pre_hook(self._note_words))

    def read(self, batch: Mapping[str, Any]) -> dict[str, Seen]:
        """Run the model on a batch and return what every tap saw; a module that did not run is not among them."""
        self._batch, self._words, self._pooled, self._seen = batch, None, None, {}
        self._taps.open()
        try:
            self.model(**self._inputs(batch))
        finally:
            self._taps.discard()  # what counts was kept by ``_see``
        return self._seen

    def routed(self, seen: Seen, row: int) -> list[Tensor]:
        """Return the map of a sample on each of its pictures: ``[H, Q, patches]`` a picture, or nothing."""
        maps, slots = seen.maps[row], picture_rows(self._batch, row)
        if self._pooled is None or seen.is_self:
            return [maps[..., seen.keys.patches]]
        width = maps.shape[-1] // slot_count(self._batch)
        return [
            maps[..., slot * width : (slot + 1) * width] @ self._pooled[number, -width:, seen.keys.patches]
            for slot, number in slots
        ]

    def __enter__(self) -> WatchedModel:
        return self

    def __exit__(self, *exc: object) -> None:
        self._taps.remove()
        for handle in self._handles:
            handle.remove()

    def _is_cross(self, tap: str) -> bool:
        return kind_by_name(self._paths[tap]) == "cross"

    def _note_words(self, module: nn.Module, args: tuple) -> None:
        ids = args[0] if args else None
        if isinstance(ids, Tensor) and ids.ndim == 2 and not ids.is_floating_point():
            self._words = ids

    def _see_pooler(self, maps: Tensor) -> Tensor:
        if self._pooled is None:
            self._pooled = maps[:, 0]
        return maps

    def _see(self, tap: str, maps: Tensor) -> Tensor:
        if tap in self._seen:
            return maps
        path, is_cross = self._paths[tap], self._is_cross(tap)
        is_visual = VISUAL.search(path) is not None
        R, _, Q, K = maps.shape
        words = self._words if self._words is not None and len(self._words) == R and not is_visual else None
        length = None if words is None else words.shape[1]
        queries = axis_of(Q, length, self.side, is_visual=is_visual)
        if (words is not None and not queries.text) or "pool" in path:
            queries = Axis()
        keys = self._keys(K, words) if is_cross else (queries if Q == K else Axis())
        is_self = not is_cross and Q == K
        distance = None
        if is_self and queries.kind in ("words", "picture"):
            inner = queries.patches if queries.side else slice(None)
            mask = None if words is None else words_mask(words, self._batch)
            distance = attention_distance(maps[..., inner, inner], places(queries, maps.device), mask).cpu()
        kept = maps if tap in self._kept else None
        self._seen[tap] = Seen(queries, keys, is_self, words, distance, kept)
        return maps[:0]

    def _keys(self, K: int, words: Tensor | None) -> Axis:
        """Say what cross-attention looks at."""
        if self._pooled is not None:
            return axis_of(self._pooled.shape[-1], None, self.side, is_visual=True)
        ids = self._batch.get("input_ids")
        is_source = ids is not None and words is not None and not _equal(ids, words)
        return axis_of(K, ids.shape[1] if is_source else None, self.side)


def plain(tap: str) -> str:
    """Return the tap of the whole map: all rows, all heads."""
    parsed = Tap.parse(tap)
    return f"{parsed.path}@{parsed.side}"


def words_mask(words: Tensor, batch: Mapping[str, Any]) -> Tensor | None:
    """Return which of the words that a module read are no padding, bool ``[R, T]``; None if the batch does not say."""
    if _equal(batch.get("input_ids"), words):
        mask = batch.get("attention_mask")
    else:
        mask = batch.get("decoder_attention_mask")
        if mask is None and batch.get("labels") is not None:
            mask = batch["labels"] != IGNORED  # the word read at a position is there to predict its label
    return mask.bool() if mask is not None and mask.shape == words.shape else None


def slot_count(batch: Mapping[str, Any]) -> int:
    """Return how many places for pictures a row of the batch has."""
    pixels = batch.get("pixel_values")
    return 0 if pixels is None else pixels.shape[1] if pixels.ndim == 5 else 1


def picture_rows(batch: Mapping[str, Any], row: int) -> list[tuple[int, int]]:
    """Return (slot, number among all pictures that are there) of the pictures of a row."""
    slots = slot_count(batch)
    mask = batch.get("image_mask")
    if mask is None:
        return [(slot, row * slots + slot) for slot in range(slots)]
    mask = mask.bool().cpu()
    before = int(mask[:row].sum())
    there = [slot for slot in range(slots) if mask[row, slot]]
    return [(slot, before + i) for i, slot in enumerate(there)]


def _equal(a: Tensor | None, b: Tensor) -> bool:
    return a is not None and a.shape == b.shape and bool(torch.equal(a, b))
