"""The attention of teacher and student side by side: maps over pictures and words, likeness of heads, distance."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from potstill.report.charts import NARROW, WIDE
from potstill.report.heat import (
    FULL,
    Spread,
    bars,
    distance_chart,
    head_matrix,
    patterns,
    picture_pattern,
    unveiled,
    veiled,
    word_matrix,
)
from potstill.report.load import Run
from potstill.report.samples import is_trusted_picture
from potstill.report.schema import Attention, AttentionDistance, AttentionPair, AttentionSample, MapRow, ShownMaps
from potstill.report.text import is_finite, shorten

MOST_SAMPLES, MOST_ROWS, MOST_SIDE, MOST_WORDS, MOST_HEADS = 8, 12, 32, 48, 32
HALF_WORDS = 16  # a map of more words gets a line of its own


@dataclass
class Twin:
    """One map of both models with the word it belongs to and a remark."""

    title: str
    note: str
    teacher: Markup
    student: Markup


@dataclass
class Maps:
    """The maps of one pair for one sample.

    ``size`` is the class of their columns; by ``rank`` words over pictures stand first and words over words last.
    """

    title: str
    note: str
    twins: list[Twin]
    size: str
    rank: int


@dataclass
class AttentionSampleView:
    """One sample: its pictures as fills and in plain sight, and the maps by pair."""

    title: str
    fills: Markup
    pictures: Markup | None
    groups: list[Maps]


@dataclass
class HeadPanel:
    """How alike the heads of a pair are."""

    title: str
    note: str
    chart: Markup


@dataclass
class AttentionView:
    """Everything the page shows about the attention of one run."""

    label: str
    style: str
    samples_read: int
    heads: list[HeadPanel]
    distance: list[tuple[str, Markup, Markup]]
    samples: list[AttentionSampleView]
    notes: list[str]


def attention_views(runs: Sequence[Run], styles: dict[str, str]) -> list[AttentionView]:
    """Return a view for every run that has something to show."""
    return [
        _view(run, number, styles[run.label], run.attention)
        for number, run in enumerate(runs)
        if run.attention is not None and has_figures(run.attention)
    ]


def has_figures(data: Attention) -> bool:
    """Whether there is anything to draw."""
    return bool(data.pairs or data.distance)


def _view(run: Run, number: int, style: str, data: Attention) -> AttentionView:
    samples = [_sample(sample, data.pairs, f"map{number}-{i}", i) for i, sample in enumerate(data.shown[:MOST_SAMPLES])]
    return AttentionView(
        run.label,
        style,
        data.samples,
        [_heads(pair) for pair in data.pairs if pair.similarity],
        _distances(data.distance, style),
        [sample for sample in samples if sample.groups],
        data.notes,
    )


def _heads(pair: AttentionPair) -> HeadPanel:
    values = [row[:MOST_HEADS] for row in pair.similarity[:MOST_HEADS]]
    spoken = []
    for i, row in enumerate(values):
        finite = [(value, j) for j, value in enumerate(row) if is_finite(value)]
        if finite:
            value, j = max(finite, key=lambda entry: entry[0])
            spoken.append(f"teacher head {i + 1} is most like student head {j + 1} ({value:.2f})")
    label = f"Similarity of heads, {_title(pair)}: " + ("; ".join(spoken) or "no value") + "."
    return HeadPanel(_title(pair), _what(pair), head_matrix(values, label))


def _distances(layers: Sequence[AttentionDistance], style: str) -> list[tuple[str, Markup, Markup]]:
    """Return (unit, chart, narrow chart) for each unit: patches and words have no common axis."""
    charts = []
    for unit in dict.fromkeys(layer.unit or "" for layer in layers):
        rows = [
            Spread(
                _path(layer.student),
                *([v for v in h if is_finite(v)] for h in (layer.teacher_heads, layer.student_heads)),
            )
            for layer in sorted(layers, key=lambda entry: _in_order(entry.student))
            if (layer.unit or "") == unit
        ]
        label = f"Attention distance in {unit}. " + " ".join(_spoken(row) for row in rows)
        charts.append((unit, *(distance_chart(rows, style, unit, label, width=width) for width in (WIDE, NARROW))))
    return charts


def _finite(values: Sequence[float | None]) -> list[float]:
    return [value for value in values[:MOST_HEADS] if is_finite(value)]


def _in_order(path: str) -> list[tuple[int, str]]:
    """Return a key that puts layer 2 before layer 10."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", path)]


def _spoken(row: Spread) -> str:
    means = [f"{math.fsum(h) / len(h):.2f}" if h else "not known" for h in (row.teacher, row.student)]
    return f"{row.name}: mean of the teacher's heads {means[0]}, of the student's {means[1]}."


def _sample(sample: AttentionSample, pairs: Sequence[AttentionPair], name: str, number: int) -> AttentionSampleView:
    trusted = [uri if is_trusted_picture(uri) else None for uri in sample.images]
    fills = [None if uri is None else f"{name}-{i}" for i, uri in enumerate(trusted)]
    made = [picture_pattern(fill, uri) for fill, uri in zip(fills, trusted) if fill and uri]
    drawn = {"picture": _over_pictures, "words": _of_words, "bars": _as_bars}
    groups = []
    for maps in sample.maps:
        if not 0 <= maps.pair < len(pairs):
            continue
        twins = [twin for row in maps.rows[:MOST_ROWS] if (twin := drawn[maps.kind](maps, row, fills))]
        if twins:
            pair = pairs[maps.pair]
            has_several = maps.kind == "picture" and any(len(row.teacher) > 1 for row in maps.rows)
            size, rank = ("broad" if has_several else ""), int(pair.queries == "picture")
            if maps.kind == "words":
                size, rank = ("broad" if len(maps.keys) <= HALF_WORDS else "whole"), 2
            groups.append(Maps(_title(pair), _what(pair), twins, size, rank))
    groups.sort(key=lambda group: group.rank)
    plain = unveiled(fills, f"Pictures of sample {number + 1}") if made else None
    return AttentionSampleView(f"{number + 1}. {sample.task or 'sample'}", patterns(made), plain, groups)


def _over_pictures(maps: ShownMaps, row: MapRow, fills: Sequence[str | None]) -> Twin | None:
    rows, columns = maps.grid or (0, 0)
    sides = _lists(row)
    if not (0 < rows <= MOST_SIDE and 0 < columns <= MOST_SIDE) or sides is None:
        return None
    teacher, student = sides
    if any(len(cells) != rows * columns for cells in (*teacher, *student)):
        return None
    known = [*fills, *[None] * len(teacher)][: len(teacher)]
    top = max((v for cells in (*teacher, *student) for v in cells if is_finite(v)), default=0.0)
    drawn = [
        veiled(known, side, (rows, columns), top, _spoken_map(who, row, side, columns), row.cell)
        for who, side in (("Teacher", teacher), ("Student", student))
    ]
    peak = f"clear = {top / FULL:.0%}"
    return Twin(row.query or "", " · ".join([*_head_names(row), peak]), *drawn)


def _spoken_map(who: str, row: MapRow, pictures: Sequence[Sequence[float]], columns: int) -> str:
    parts = []
    for number, cells in enumerate(pictures):
        finite = [(value, place) for place, value in enumerate(cells) if is_finite(value)]
        if finite:
            value, place = max(finite, key=lambda entry: entry[0])
            where = f"row {place // columns + 1}, column {place % columns + 1}"
            of = f" of picture {number + 1}" if len(pictures) > 1 else ""
            parts.append(f"most at {where}{of} ({value / FULL:.0%})")
    return f"{who}, “{row.query}”: " + ("; ".join(parts) or "no value")


def _of_words(maps: ShownMaps, row: MapRow, fills: Sequence[str | None]) -> Twin | None:
    queries, keys, sides = maps.queries, maps.keys, _lists(row)
    if sides is None or not (0 < len(queries) <= MOST_WORDS and 0 < len(keys) <= MOST_WORDS):
        return None
    if any(len(side) != len(queries) or any(len(line) != len(keys) for line in side) for side in sides):
        return None
    drawn = []
    for who, side in zip(("Teacher", "Student"), sides):
        best = max(((v, q, k) for q, line in enumerate(side) for k, v in enumerate(line) if is_finite(v)), default=None)
        spoken = (
            "no value"
            if best is None
            else f"most from “{queries[best[1]]}” to “{keys[best[2]]}” ({best[0] / FULL:.0%})"
        )
        drawn.append(word_matrix(queries, keys, side, f"{who}, words that look at words: {spoken}"))
    return Twin(" · ".join(_head_names(row)), "", *drawn)


def _as_bars(maps: ShownMaps, row: MapRow, fills: Sequence[str | None]) -> Twin | None:
    sides = [side for side in (row.teacher, row.student) if side and not isinstance(side[0], list)]
    if len(sides) != 2 or max(map(len, sides)) > MOST_WORDS * 4:
        return None
    top = max((v for side in sides for v in side if is_finite(v)), default=0.0)
    drawn = [
        bars(side, top, f"{who}, “{row.query}”: {len(side)} keys, at most {max(side) / FULL:.0%}")
        for who, side in zip(("Teacher", "Student"), sides)
    ]
    return Twin(row.query or "", " · ".join(_head_names(row)), *drawn)


def _lists(row: MapRow) -> tuple[list[list[float]], list[list[float]]] | None:
    """Return the maps of both models, as many of each, if they are lists of lists."""
    sides = row.teacher, row.student
    is_nested = all(side and all(isinstance(inner, list) for inner in side) for side in sides)
    return sides if is_nested and len(sides[0]) == len(sides[1]) else None


def _head_names(row: MapRow) -> list[str]:
    if row.teacher_head is None or row.student_head is None:
        return ["mean of heads"]
    return [f"teacher head {row.teacher_head + 1}, student head {row.student_head + 1}"]


def _title(pair: AttentionPair) -> str:
    return _path(pair.student)


def _what(pair: AttentionPair) -> str:
    same = "" if _path(pair.teacher) == _path(pair.student) else f"teacher: {_path(pair.teacher)} · "
    return f"{same}{pair.queries or 'other'} → {pair.keys or 'other'}"


def _path(tap: str) -> str:
    """Write a tap as a reader takes it: the layer, and which attention where a layer has two."""
    path, _, side = tap.partition("@")
    kind = {"cross_attention": " (cross)", "self_attention": " (self)"}.get(side, "")
    return shorten(path, 60) + kind
