"""The maps of a few samples, cut down to what can be drawn and looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.evaluate.attention_axes import head_similarity
from potstill.evaluate.attention_reading import Seen, WatchedModel, picture_rows, words_mask
from potstill.evaluate.batches import label_keys, rows_of
from potstill.evaluate.samples import pictures_of, png_uri

WORDS, HEADS, PATCHES, LONGEST, SIDE, PIXELS = 8, 3, 2, 32, 16, 192
"""Words and heads shown of a map over a picture, patches of one inside an image encoder, words along a map of words;
rows of a patch grid (finer ones are summed in blocks); longer side of a picture."""


def choose_rows(batch: Mapping[str, Any], n: int) -> list[tuple[int, str | None]]:
    """Return (row, task) of ``n`` rows of a batch, of each task in turn."""
    found = {task: rows_of(batch[key]).nonzero()[:, 0].tolist() for task, key in sorted(label_keys(batch).items())}
    if len(found) > 1:
        found.pop("main", None)  # the same labels again, of all tasks
    waiting = [(task, rows) for task, rows in found.items() if rows]
    if not waiting:
        size = next((len(v) for v in batch.values() if isinstance(v, Tensor) and v.ndim), 0)
        return [(row, None) for row in range(min(n, size))]
    chosen: dict[int, str] = {}
    for turn in range(max(len(rows) for _, rows in waiting)):
        for task, rows in waiting:
            if turn < len(rows) and len(chosen) < n:
                chosen.setdefault(rows[turn], task)
    return sorted(chosen.items(), key=lambda entry: entry[1])


def shown_sample(
    batch: Mapping[str, Any],
    chosen: tuple[int, str | None],
    pairs: Sequence[tuple[Seen, Seen]],
    student: WatchedModel,
    teacher: WatchedModel,
    tokenizer: Any,
) -> dict[str, Any]:
    """Return the entry of one sample in ``attention.json``.

    Args:
        batch: The batch that both models saw.
        chosen: Its row and task.
        pairs: What the taps of student and teacher saw, maps of one size, for each pair to show.
        student: The student.
        teacher: The teacher.
        tokenizer: Names words; None = they are numbered.
    """
    row, task = chosen
    views = [_view(batch, row, *pair, student, teacher, tokenizer) for pair in pairs]
    pictures = [png_uri(_small(picture)) for picture in pictures_of(batch, row)]
    maps = [{"pair": number, **view} for number, view in enumerate(views) if view is not None]
    return {"task": task, "images": pictures, "maps": maps}


def _view(
    batch: Mapping[str, Any],
    row: int,
    seen_s: Seen,
    seen_t: Seen,
    student: WatchedModel,
    teacher: WatchedModel,
    tokenizer: Any,
) -> dict[str, Any] | None:
    words = seen_t.words
    if seen_t.queries.side and not seen_t.queries.text:
        return _patch_view(batch, row, seen_s, seen_t)
    if not seen_t.queries.text or words is None:
        return None
    mask = words_mask(words, batch)
    valid = torch.ones_like(words[row], dtype=torch.bool) if mask is None else mask[row]
    places = valid.nonzero()[:, 0].tolist()
    names = _names(words[row], tokenizer)
    if seen_t.keys.side and seen_s.keys.side == seen_t.keys.side:
        maps = [model.routed(seen, row) for model, seen in ((student, seen_s), (teacher, seen_t))]
        special = set(getattr(tokenizer, "all_special_ids", ()))
        spoken = [i for i in places if int(words[row, i]) not in special] or places
        return _picture_view(*maps, seen_t.keys.side, spoken, names)
    if seen_t.is_self or seen_t.keys.text:
        keys, key_names = places, names
        if not seen_t.is_self:
            keys = list(range(seen_t.keys.text))
            if batch.get("attention_mask") is not None:
                keys = batch["attention_mask"][row].bool().nonzero()[:, 0].tolist()
            key_names = _names(batch["input_ids"][row], tokenizer)
        return _word_view(seen_s.maps[row], seen_t.maps[row], places[:LONGEST], keys[:LONGEST], names, key_names)
    return _bar_view(seen_s.maps[row], seen_t.maps[row], places[:WORDS], names)


def _picture_view(
    student: list[Tensor], teacher: list[Tensor], side: int, places: list[int], names: list[str]
) -> dict[str, Any]:
    """Show where words look: the mean of the heads of each word, then a few heads with their likest."""
    mean = torch.stack([m.mean(0) for m in teacher])  # [pictures, Q, cells]
    peak = mean.amax((0, 2))[places]
    best = sorted(places[i] for i in peak.topk(min(WORDS, len(places))).indices.tolist())
    rows = [{"query": names[q], "teacher": _cells(teacher, q, side), "student": _cells(student, q, side)} for q in best]
    chosen = torch.cat(student, -1)[:, places], torch.cat(teacher, -1)[:, places]  # [H, words, cells]
    for head, match in _matches(*chosen):
        q = best[int(torch.cat(teacher, -1)[head, best].amax(-1).argmax())]
        entry = {"teacher": _cells(teacher, q, side, head), "student": _cells(student, q, side, match)}
        rows.append({"query": names[q], "teacher_head": head, "student_head": match, **entry})
    return {"kind": "picture", "grid": [_shrunk(side)] * 2, "rows": rows}


def _patch_view(batch: Mapping[str, Any], row: int, seen_s: Seen, seen_t: Seen) -> dict[str, Any] | None:
    """Show where the CLS token and the patches that are looked at most look, in the first picture of the row."""
    side, slots = seen_t.queries.side, picture_rows(batch, row)
    if seen_s.queries != seen_t.queries or not slots:
        return None
    number = slots[0][1]  # an image encoder sees each picture that is there once
    maps_s, maps_t = seen_s.maps[number], seen_t.maps[number]
    patches, extra = seen_t.queries.patches, seen_t.queries.extra
    looked_at = maps_t.mean(0)[patches, patches].sum(0).topk(min(PATCHES, side**2)).indices.tolist()
    queries = [("CLS", None, 0)] if extra else []
    queries += [(f"row {i // side + 1}, column {i % side + 1}", i, i + extra) for i in looked_at]
    student, teacher = [maps_s[..., patches]], [maps_t[..., patches]]  # of one picture
    rows = [
        {
            "query": name,
            "cell": None if cell is None else _place(cell, side),
            "teacher": _cells(teacher, q, side),
            "student": _cells(student, q, side),
        }
        for name, cell, q in queries
    ]
    name, cell, q = queries[0]
    for head, match in _matches(maps_s[:, patches, patches], maps_t[:, patches, patches]):
        entry = {"teacher": _cells(teacher, q, side, head), "student": _cells(student, q, side, match)}
        where = None if cell is None else _place(cell, side)
        rows.append({"query": name, "cell": where, "teacher_head": head, "student_head": match, **entry})
    return {"kind": "picture", "grid": [_shrunk(side)] * 2, "rows": rows}


def _word_view(
    student: Tensor, teacher: Tensor, queries: list[int], keys: list[int], names: list[str], key_names: list[str]
) -> dict[str, Any]:
    """Show which words look at which: the mean of the heads, then one head with its likest."""
    maps_s, maps_t = (m[:, queries][..., keys] for m in (student, teacher))
    rows = [{"teacher": _whole(maps_t.mean(0)), "student": _whole(maps_s.mean(0))}]
    for head, match in _matches(maps_s, maps_t)[:1]:
        heads = {"teacher_head": head, "student_head": match}
        rows.append({**heads, "teacher": _whole(maps_t[head]), "student": _whole(maps_s[match])})
    return {"kind": "words", "queries": [names[q] for q in queries], "keys": [key_names[k] for k in keys], "rows": rows}


def _bar_view(student: Tensor, teacher: Tensor, queries: list[int], names: list[str]) -> dict[str, Any] | None:
    """Show keys that are neither words nor places as they stand in a row."""
    if teacher.shape[-1] > 4 * LONGEST:
        return None
    rows = [
        {"query": names[q], "teacher": _whole(teacher[:, q].mean(0)), "student": _whole(student[:, q].mean(0))}
        for q in queries
    ]
    return {"kind": "bars", "rows": rows}


def _matches(student: Tensor, teacher: Tensor) -> list[tuple[int, int]]:
    """Return a few teacher heads, the most focused ones, each with the student head most like it."""
    alike = head_similarity(*(m[None] / m.sum(-1, keepdim=True).clamp_min(1e-9) for m in (student, teacher)))[0]
    focused = teacher.amax(-1).mean(-1).topk(min(HEADS, len(teacher))).indices.sort().values.tolist()
    return [(head, int(alike[head].argmax())) for head in focused]


def _cells(pictures: list[Tensor], query: int, side: int, head: int | None = None) -> list[list[int]]:
    """Return the map of a query on each picture, in thousandths, finer grids summed in blocks."""
    found = []
    for maps in pictures:
        cells = (maps[:, query].mean(0) if head is None else maps[head, query]).reshape(1, 1, side, side)
        block = _block(side)
        if block > 1:
            cells = F.avg_pool2d(cells, block, ceil_mode=True, divisor_override=1)
        found.append(_whole(cells.flatten()))
    return found


def _block(side: int) -> int:
    return -(-side // SIDE)


def _shrunk(side: int) -> int:
    return -(-side // _block(side))


def _place(cell: int, side: int) -> int:
    """Return the number of a cell of the grid as it is drawn."""
    block = _block(side)
    return cell // side // block * _shrunk(side) + cell % side // block


def _whole(values: Tensor) -> Any:
    return (values.float() * 1000).round().int().cpu().tolist()


def _names(ids: Tensor, tokenizer: Any) -> list[str]:
    if tokenizer is None:
        return [f"word {i + 1}" for i in range(len(ids))]
    return [tokenizer.decode([int(i)]).strip()[:40] or "␣" for i in ids]


def _small(picture: Tensor) -> Tensor:
    scale = PIXELS / max(picture.shape[-2:])
    if scale >= 1:
        return picture
    size = [max(1, round(n * scale)) for n in picture.shape[-2:]]
    return F.interpolate(picture[None].float(), size=size, mode="bilinear", antialias=True)[0]
