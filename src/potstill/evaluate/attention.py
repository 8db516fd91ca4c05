"""Attention of student and teacher side by side: maps to look at, how alike heads are, how far layers look."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from potstill.align.masks import token_mask
from potstill.errors import PotstillError
from potstill.evaluate.attention_axes import head_similarity
from potstill.evaluate.attention_reading import Seen, WatchedModel, plain, words_mask
from potstill.evaluate.attention_shown import choose_rows, shown_sample
from potstill.evaluate.batches import choose_indices, device_of, iterate, measuring, tokenizer_of
from potstill.taps import Tap, find_attention

LARGEST = 300_000  # bytes of the data as JSON


@dataclass(frozen=True)
class MapPair:
    """A map of the student and the map of the teacher it is compared with.

    Attributes:
        student: Tap in the student, ``path@attention`` or ``path@cross_attention``.
        teacher: Tap in the teacher.
        name: What they belong to: a module or an objective.
        mask: Batch key of the mask of query positions, as ``token_mask`` reads it; None = what the batch says of the
            words that the module read.
        tau: Temperature of the soft alignment of heads, see ``amad_loss``.
        resize: Brings maps of the teacher to the size of the student's: ``resize(maps, shape of the student's)``.
    """

    student: str
    teacher: str
    name: str = ""
    mask: str | None = None
    tau: float = 1.0
    resize: Callable[[Tensor, torch.Size], Tensor] | None = None


def compare_attention(
    student: nn.Module,
    teacher: nn.Module,
    pairs: Sequence[MapPair],
    dataset: Any,
    collator: Callable[[list[Any]], Mapping[str, Any]],
    *,
    layers: Sequence[tuple[str, str, str]] = (),
    n: int = 4,
    max_samples: int = 64,
    batch_size: int = 16,
    seed: int = 1,
    inputs: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Read the attention maps of both models over the same samples.

    Cross-attention to a memory that a model pooled from its patches (CoCa) is shown on the patches: its map times the
    map of the pooler, mean over the pooler's heads. Similarity is of the maps as they are.

    Args:
        student: The student.
        teacher: The teacher, on the same device.
        pairs: Which maps to compare.
        dataset: Map-style.
        collator: Samples to a batch.
        layers: (module, tap in the student, tap in the teacher) of further self-attention: only its distance is taken.
        n: How many samples to show, of each task in turn; from the first batch.
        max_samples: Over how many samples similarity and distance are taken.
        batch_size: Samples per forward pass; the maps of all pairs of a batch are in memory at once.
        seed: Another seed draws other samples.
        inputs: Batch keys that both models take; None = those the ``forward`` of each names.

    Returns:
        The content of ``attention.json`` (docs/run-folder.md), below 300 kB: ``{"version", "samples", "notes", "pairs",
        "distance", "shown"}``. A pair that cannot be read or compared is left out, with a sentence in ``notes``.
    """
    inputs, notes = None if inputs is None else list(inputs), []
    pairs = [replace(p, student=plain(p.student), teacher=plain(p.teacher)) for p in pairs]
    pairs = [p for p in pairs if _is_readable(student, teacher, p.student, p.teacher, notes)]
    layers = [(name, plain(s), plain(t)) for name, s, t in layers if _is_readable(student, teacher, s, t, notes)]
    spans = dict.fromkeys([*((p.name, p.student, p.teacher) for p in pairs), *layers])
    spans = {key: _Span(*key) for key in spans}
    compared = [_Compared(pair) for pair in pairs]
    shown, drawn, count = [], [], 0
    indices = choose_indices(dataset, max_samples, seed=seed)
    with ExitStack() as stack:
        stack.enter_context(measuring(student, teacher))
        model_s = stack.enter_context(
            WatchedModel(student, [p.student for p in pairs], [s for _, s, _ in layers], inputs)
        )
        model_t = stack.enter_context(
            WatchedModel(teacher, [p.teacher for p in pairs], [t for _, _, t in layers], inputs)
        )
        batches = iterate(dataset, collator, indices, batch_size=batch_size, device=device_of(student))
        for samples, batch in batches if spans else ():
            seen_t, seen_s = model_t.read(batch), model_s.read(batch)
            for span in spans.values():
                span.add(seen_s.get(span.student), seen_t.get(span.teacher))
            for one in (c for c in compared if c.refused is None):
                one.add(seen_s.get(one.pair.student), seen_t.get(one.pair.teacher), batch)
            if not count:
                drawn, tokenizer = [c for c in compared if c.refused is None], tokenizer_of(collator)
                last = [c.last for c in drawn]
                shown = [shown_sample(batch, row, last, model_s, model_t, tokenizer) for row in choose_rows(batch, n)]
            count += len(samples)
    kept = [c for c in compared if c.refused is None and c.last is not None]
    for sample in shown:  # a pair may have been refused in a later batch
        maps = [(drawn[view["pair"]], view) for view in sample["maps"]]
        sample["maps"] = [{**view, "pair": kept.index(c)} for c, view in maps if c in kept]
    notes += [f'"{c.pair.student}" and "{c.pair.teacher}" {c.refused}.' for c in compared if c.refused]
    return _within(
        {
            "version": 1,
            "samples": count,
            "notes": notes,
            "pairs": [c.entry() for c in kept],
            "distance": [span.entry() for span in spans.values() if span.unit],
            "shown": shown,
        }
    )


@dataclass
class _Span:
    """The distances of one layer of both models."""

    module: str
    student: str
    teacher: str
    unit: str | None = None
    rows: tuple[list[Tensor], list[Tensor]] = field(default_factory=lambda: ([], []))

    def add(self, seen_s: Seen | None, seen_t: Seen | None) -> None:
        if seen_s and seen_t and seen_s.distance is not None and seen_t.distance is not None:
            self.unit = "patches" if seen_t.queries.side else "words"
            self.rows[0].append(seen_s.distance)
            self.rows[1].append(seen_t.distance)

    def entry(self) -> dict[str, Any]:
        student, teacher = (_rounded(torch.cat(rows).nanmean(0)) for rows in self.rows)
        taps = {"student": self.student, "teacher": self.teacher}
        return {"module": self.module, **taps, "unit": self.unit, "student_heads": student, "teacher_heads": teacher}


@dataclass(eq=False)
class _Compared:
    """How alike the heads of a pair are, summed over samples."""

    pair: MapPair
    refused: str | None = None
    count: int = 0
    similarity: Tensor | None = None  # [Ht, Hs]
    alignment: Tensor | None = None
    last: tuple[Seen, Seen] | None = None  # of student and teacher, of one size

    def add(self, seen_s: Seen | None, seen_t: Seen | None, batch: Mapping[str, Any]) -> None:
        if seen_s is None or seen_t is None:
            self.refused = "did not both run in a forward pass and are not compared"
            return
        maps_s, maps_t = seen_s.maps, seen_t.maps
        try:
            if self.pair.resize is not None:
                maps_t = self.pair.resize(maps_t, maps_s.shape)
                seen_t = replace(seen_t, queries=seen_s.queries, keys=seen_s.keys, maps=maps_t)
            mask = token_mask(batch, self.pair.mask, maps_s.shape[2])
        except PotstillError as error:
            self.refused = f"cannot be compared ({error.message})"
            return
        size_s, size_t = ((len(m), *m.shape[2:]) for m in (maps_s, maps_t))
        if size_s != size_t:
            self.refused = (
                f"see other positions ({size_s[1]} × {size_s[2]} in the student, {size_t[1]} × {size_t[2]} in the "
                "teacher) and are not compared"
            )
            return
        if mask is None and seen_s.words is not None and seen_s.queries.text:
            mask = words_mask(seen_s.words, batch)
            if mask is not None:  # patches behind the words all count
                mask = torch.cat([mask, mask.new_ones(len(mask), maps_s.shape[2] - mask.shape[1])], dim=1)
        alike = head_similarity(maps_s, maps_t, mask).double()
        if mask is not None:
            alike = alike[mask.any(1)]
        aligned = (alike / self.pair.tau).softmax(-1)
        if self.similarity is None:
            self.similarity, self.alignment = (torch.zeros_like(alike[:1].sum(0)) for _ in range(2))
        self.similarity += alike.sum(0)
        self.alignment += aligned.sum(0)
        self.count += len(alike)
        self.last = seen_s, seen_t

    def entry(self) -> dict[str, Any]:
        n, (seen_s, _) = max(self.count, 1), self.last
        return {
            "name": self.pair.name,
            "student": self.pair.student,
            "teacher": self.pair.teacher,
            "queries": seen_s.queries.kind,
            "keys": seen_s.keys.kind,
            "tau": self.pair.tau,
            "similarity": _rounded(self.similarity / n),
            "alignment": _rounded(self.alignment / n),
        }


def _is_readable(student: nn.Module, teacher: nn.Module, tap_s: str, tap_t: str, notes: list[str]) -> bool:
    for model, tap in ((student, tap_s), (teacher, tap_t)):
        parsed = Tap.parse(tap)
        try:
            find_attention(model, parsed.path, parsed.kind)
        except (PotstillError, AttributeError) as error:  # the latter is what torch says of a path that is not there
            notes.append(f'"{tap}" cannot be read: {getattr(error, "message", error)}.')
            return False
    return True


def _rounded(values: Tensor) -> Any:
    def plain_number(x: Any) -> Any:
        return [plain_number(y) for y in x] if isinstance(x, list) else round(x, 3) if math.isfinite(x) else None

    return plain_number(values.double().cpu().tolist())


def _within(data: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is shown last until the rest is no larger than it may be."""
    left = LARGEST - 200 - _size(data)  # 200 for the sentence below
    if left >= 0:
        return data
    while data["shown"] and left < 0:
        entry = data["shown"][-1]
        left += _size(entry["maps"].pop() if len(entry["maps"]) > 1 else data["shown"].pop())
    data["notes"].append("Some maps were left out to keep the file small.")
    return data


def _size(value: Any) -> int:
    """Return how many bytes a value takes as JSON."""
    return len(json.dumps(value, ensure_ascii=False).encode())
