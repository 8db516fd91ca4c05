"""A small cache without a model: rows that are functions of their number."""

import numpy as np
import torch

from potstill.teachers.cache import CacheReader, CacheWriter, Field
from potstill.teachers.cache.codecs import encode
from potstill.teachers.cache.header import make_header

ROWS, SHARD_ROWS, BATCH = 21, 8, 4
FIELDS = (
    Field("logits", "top_k", "fp16", (-1, 50), "labels", True, 50, 5, (1.0,)),
    Field("drawn_logits", "drawn", "fp16", (-1, 50), "labels", True, 50, 6),
    Field("blocks.1", "whole", "int8", (-1, 8), "attention_mask"),
    Field("pooled", "whole", "bf16", (6,)),
    Field("blocks.1@attention", "whole", "fp16", (2, -1, -1), "attention_mask"),
)


def length(row):
    return row % 4 + 1


def batch_of(rows):
    """A batch padded on the right; labels from the second token on."""
    T = max(map(length, rows))
    mask = torch.arange(T) < torch.tensor([length(r) for r in rows])[:, None]
    labels = torch.where(mask, 7, -100)
    labels[:, 0] = -100
    return {"attention_mask": mask.long(), "labels": labels}


def shown(rows, T):
    """What the teacher shows, by name; the same for a row whatever is in the batch beside it."""
    found = {}
    for name, shape in {"logits": (9, 50), "blocks.1": (9, 8), "pooled": (6,)}.items():
        values = [torch.randn(shape, generator=torch.Generator().manual_seed(100 * r + len(name))) for r in rows]
        found[name] = torch.stack(values)[:, :T] if name != "pooled" else torch.stack(values)
    found["drawn_logits"] = found["logits"]
    maps = [torch.rand(2, 9, 9, generator=torch.Generator().manual_seed(r))[:, :T, :T] for r in rows]
    keep = batch_of(rows)["attention_mask"].bool()
    found["blocks.1@attention"] = torch.stack(maps) * keep[:, None, None, :]
    return found


def header(**changes):
    given = {
        "teacher": {"model": "made-up", "class": "None", "weights": "w" * 64, "files": "f", "config": "c"}
        | {"dtype": "fp32"},
        "processor": None,
        "data": {"rows": ROWS, "fingerprint": "d"},
        "fields": [field.as_row() for field in FIELDS],
        "settings": {"shard_rows": SHARD_ROWS, "batch_size": BATCH, "seed": 0},
    }  # fmt: skip
    return make_header(**(given | changes))


def make_rows(rows):
    """Return the arrays of every row and field, and how many positions each keeps."""
    batch = batch_of(rows)
    seen = shown(rows, batch["labels"].shape[1])
    made, counts = [], []
    for i, field in enumerate(FIELDS):
        kept = field.kept(batch)
        generator = torch.Generator().manual_seed(1000 * rows[0] + i)
        made.append(encode(field, seen[field.name], kept, generator))
        counts.append(np.full(len(rows), field.vectors_of(0)) if kept is None else kept.sum(1).numpy())
    return list(zip(*made)), np.stack(counts, 1)


def build(folder, stop_before=None, **changes):
    """Write a cache; ``stop_before`` = number of the first file that is not written."""
    with CacheWriter(folder, header(**changes)).open() as writer:
        for number in range(writer.number):
            if number == stop_before:
                return None
            if writer.is_done(number):
                continue
            rows, positions = [], []
            for start in range(writer.span(number).start, writer.span(number).stop, BATCH):
                made, counts = make_rows(list(range(start, min(start + BATCH, writer.span(number).stop))))
                rows += made
                positions.append(counts)
            writer.write(number, rows, np.concatenate(positions))
        if stop_before == writer.number:
            return None
        writer.finish()
    return CacheReader(folder)


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
