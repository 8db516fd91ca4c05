"""From what the teacher showed to arrays on disk, row by row, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from potstill.errors import NumericsError
from potstill.teachers.cache.fields import Field
from potstill.teachers.cache.packing import bits_for, from_bytes, pack, packed_bytes, to_bytes, unpack

Arrays = dict[str, np.ndarray]
CHUNK = 1 << 26  # numbers of a distribution worked on at once
_NUMPY = {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16, "int8": np.int8}


def arrays_of(field: Field) -> dict[str, tuple[type, int]]:
    """Return the arrays a field is kept in: name -> (type, numbers for each vector; 0 = varies).

    "ids" holds packed bytes. Of drawn classes "number" says how many differ at each position.
    """
    if field.kind == "whole":
        found = {"values": (_NUMPY[field.codec], field.vector)}
        return found | ({"scale": (np.float32, 1)} if field.codec == "int8" else {})
    if field.kind == "drawn":
        return {"ids": (np.uint8, 0), "log_probs": (np.float16, 0), "counts": (np.uint8, 0), "number": (np.uint8, 1)}
    found = {"ids": (np.uint8, 0)}
    if field.codec == "u8":
        found |= {"log_probs": (np.uint8, field.k), "ends": (np.float16, 2)}
    else:
        found |= {"log_probs": (np.float16, field.k)}
    found["tail"] = (np.float16, len(field.temperatures))
    return found | ({"logsumexp": (np.float32, 1)} if field.logsumexp else {})


def encode(field: Field, value: Tensor, kept: Tensor | None, generator: torch.Generator | None = None) -> list[Arrays]:
    """Return the arrays of every row of a batch.

    Args:
        field: What is kept.
        value: What the teacher showed, ``[B, ...]``.
        kept: Which positions, ``[B, T]``, or None.
        generator: For classes that are drawn, on the device of ``value``.

    Raises:
        NumericsError: The teacher showed NaN or Inf where something is kept.
    """
    field.check(value, len(value))
    rows = [_row(field, value[i], None if kept is None else kept[i]) for i in range(len(value))]
    flat = torch.cat([row.reshape(-1, field.vector) for row in rows])
    if not torch.isfinite(flat).all() and (field.kind == "whole" or flat.isnan().any() or (flat == torch.inf).any()):
        raise NumericsError("the teacher shows NaN or Inf", where=f'field "{field.name}"')
    vectors = np.array([row.numel() // field.vector for row in rows])
    if field.kind == "whole":
        arrays = _whole(flat, field.codec)
    elif field.kind == "drawn":
        return _split_drawn(field, _drawn(field, flat, generator), vectors)
    else:
        arrays = _top_k(field, flat)
    stops = np.cumsum(vectors)
    found = []
    for start, stop in zip(stops - vectors, stops):
        row = {name: array[start:stop] for name, array in arrays.items()}
        if "ids" in row:
            row["ids"] = pack(row["ids"].reshape(-1), bits_for(field.vocab))
        found.append({name: array.reshape(-1) for name, array in row.items()})
    return found


def decode(field: Field, arrays: Arrays, vectors: np.ndarray) -> dict[str, Tensor]:
    """Return the tensors of some rows, one entry for each vector: what ``encode`` made of them, joined.

    Args:
        field: What is kept.
        arrays: The arrays of the rows, joined.
        vectors: Of each row, ``[B]``.

    Returns:
        "values" ``[N, D]``; or "ids" int32 and "log_probs" ``[N, k]``, "tail" ``[N, temperatures]``, "counts"
        ``[N, k]``, "logsumexp" ``[N]``. Numbers are float32.
    """
    N = int(vectors.sum())
    if field.kind == "whole":
        return {"values": _from_whole(field, arrays, N)}
    if field.kind == "drawn":
        return _from_drawn(field, arrays, vectors)
    ids = _without_filling(unpack(arrays["ids"], bits_for(field.vocab)), vectors * field.k).reshape(N, field.k)
    log_probs = arrays["log_probs"].reshape(N, field.k)
    if field.codec == "u8":
        log_probs = from_bytes(log_probs, arrays["ends"].reshape(N, 2))
    found = {
        "ids": ids,
        "log_probs": log_probs.astype(np.float32),
        "tail": arrays["tail"].reshape(N, len(field.temperatures)).astype(np.float32),
    }
    if field.logsumexp:
        found["logsumexp"] = np.array(arrays["logsumexp"])
    return {name: torch.from_numpy(array) for name, array in found.items()}


def place(field: Field, found: Mapping[str, Tensor], kept: Tensor | None, rows: int) -> dict[str, Tensor]:
    """Put vectors where they stood in the batch; positions that were not kept hold NaN (ids and counts: 0).

    NaN, so that whoever reads what is not there finds out.
    """
    if not field.is_ragged:
        return {name: x.reshape(rows, *field.shape[:-1], *x.shape[1:]) for name, x in found.items()}
    T = kept.shape[1]
    out = {}
    if not field.is_map:
        for name, x in found.items():
            empty = x.new_full((rows, T, *x.shape[1:]), torch.nan if x.is_floating_point() else 0)
            empty[kept] = x
            out[name] = empty
        return out
    x = found["values"].reshape(-1)
    H, _, K = (T if n == -1 else n for n in field.shape)
    # No key that is masked is looked at: there a map holds 0. Queries that are masked must not be read.
    empty, start = x.new_zeros(rows, H, T, K), 0
    for b in range(rows):
        n = int(kept[b].sum())
        m = n if field.shape[2] == -1 else K
        block = x[start : start + H * n * m].view(H, n, m)
        start += H * n * m
        keys = kept[b] if field.shape[2] == -1 else torch.ones(K, dtype=torch.bool)
        empty[b] = empty[b].masked_fill(~kept[b][:, None], torch.nan)
        empty[b, :, kept[b].nonzero(), keys.nonzero()[:, 0]] = block  # [n, 1] and [m] name an n x m part
    return {"values": empty}


def _row(field: Field, value: Tensor, kept: Tensor | None) -> Tensor:
    if kept is None or not field.is_ragged:
        return value
    if not field.is_map:
        return value[kept]
    value = value[:, kept]
    return value[:, :, kept] if field.shape[2] == -1 else value


def _whole(flat: Tensor, codec: str) -> Arrays:
    if codec == "int8":
        flat = flat.float()
        scale = (flat.abs().amax(-1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        values = (flat / scale[:, None]).round().to(torch.int8)
        return {"values": values.cpu().numpy(), "scale": scale.cpu().numpy()}
    if codec == "bf16":
        return {"values": flat.to(torch.bfloat16).cpu().view(torch.int16).numpy().view(np.uint16)}
    if codec == "fp16":
        edge = torch.finfo(torch.float16).max
        return {"values": flat.float().clamp(-edge, edge).half().cpu().numpy()}
    return {"values": flat.float().cpu().numpy()}


def _from_whole(field: Field, arrays: Arrays, N: int) -> Tensor:
    values = arrays["values"]
    if field.codec == "bf16":
        found = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16).float()
    else:
        found = torch.from_numpy(values.astype(np.float32))
    found = found.view(N, field.vector)
    return found * torch.from_numpy(arrays["scale"])[:, None] if field.codec == "int8" else found


def _top_k(field: Field, flat: Tensor) -> Arrays:
    parts: dict[str, list[Tensor]] = {}
    for logits in flat.split(max(1, CHUNK // max(1, flat.shape[-1]))):
        logits = logits[:, : field.vocab].float()
        total = logits.logsumexp(-1, keepdim=True)
        values, ids = logits.topk(field.k, -1)
        tails = []
        for temperature in field.temperatures:
            soft = logits if temperature == 1 else logits / temperature
            rest = soft.scatter(-1, ids, -torch.inf).logsumexp(-1)
            tails.append(rest - (total[:, 0] if temperature == 1 else soft.logsumexp(-1)))
        made = {"ids": ids, "log_probs": values - total, "tail": torch.stack(tails, -1), "logsumexp": total[:, 0]}
        for name, x in made.items():
            parts.setdefault(name, []).append(x)
    found = {name: torch.cat(xs).cpu().numpy() for name, xs in parts.items()}
    if not field.logsumexp:
        del found["logsumexp"]
    if field.codec == "u8":
        found["log_probs"], found["ends"] = to_bytes(found["log_probs"])
    else:
        found["log_probs"] = _half(found["log_probs"])
    found["tail"] = _half(found["tail"])
    return found


def _half(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, -60000).astype(np.float16)


def _drawn(field: Field, flat: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the different ids that were drawn, their log-probabilities and counts, ``[N, draws]``; 0 = empty."""
    parts = []
    for logits in flat.split(max(1, CHUNK // max(1, flat.shape[-1]))):
        log_probs = logits[:, : field.vocab].float().log_softmax(-1)
        ids = torch.multinomial(log_probs.exp(), field.k, replacement=True, generator=generator).sort(-1).values
        is_first = torch.cat([torch.ones_like(ids[:, :1], dtype=torch.bool), ids[:, 1:] != ids[:, :-1]], -1)
        place = is_first.cumsum(-1) - 1  # which of the different ids each draw is
        counts = torch.zeros_like(ids).scatter_add_(-1, place, torch.ones_like(ids))
        different = torch.zeros_like(ids).scatter_(-1, place, ids)
        parts.append((different, log_probs.gather(-1, different), counts))
    return tuple(torch.cat(xs).cpu() for xs in zip(*parts))


def _split_drawn(field: Field, drawn: tuple[Tensor, Tensor, Tensor], vectors: np.ndarray) -> list[Arrays]:
    rows = []
    for ids, log_probs, counts in zip(*(x.split(vectors.tolist()) for x in drawn)):
        used = counts > 0
        rows.append(
            {
                "ids": pack(ids[used].numpy(), bits_for(field.vocab)),
                "log_probs": _half(log_probs[used].numpy()),
                "counts": counts[used].numpy().astype(np.uint8),
                "number": used.sum(-1).numpy().astype(np.uint8),
            }
        )
    return rows


def _from_drawn(field: Field, arrays: Arrays, vectors: np.ndarray) -> dict[str, Tensor]:
    number = torch.from_numpy(arrays["number"].astype(np.int64))
    entries = entries_of(arrays["number"], vectors)
    ids = _without_filling(unpack(arrays["ids"], bits_for(field.vocab)), entries)
    width = int(number.max()) if len(number) else 1
    used = torch.arange(width) < number[:, None]

    def spread(x: np.ndarray, dtype: torch.dtype) -> Tensor:
        empty = torch.zeros(len(number), width, dtype=dtype)
        empty[used] = torch.from_numpy(x).to(dtype)
        return empty

    return {
        "ids": spread(ids, torch.int32),
        "log_probs": spread(arrays["log_probs"].astype(np.float32), torch.float32),
        "counts": spread(arrays["counts"], torch.uint8),
    }


def entries_of(number: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return how many different classes were drawn in each row."""
    sums = np.concatenate([[0], np.cumsum(number, dtype=np.int64)])
    stops = np.cumsum(vectors)
    return sums[stops] - sums[stops - vectors]


def _without_filling(ids: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Leave out the zeros that filled up the last group of each row."""
    if not (counts % 8).any():
        return ids
    filled = -(-counts // 8) * 8
    starts = np.cumsum(filled) - filled
    return np.concatenate([ids[s : s + n] for s, n in zip(starts, counts)] or [ids[:0]])


def sizes_of(field: Field, positions: np.ndarray, number: Sequence[np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Return how many numbers of each array every row has.

    Args:
        field: What is kept.
        positions: Kept positions of each row, ``[R]``; of no meaning where the shape is fixed.
        number: Entries of each row where they are drawn, ``[R]``.
    """
    vectors = vectors_of(field, positions)
    sizes = {name: vectors * per for name, (_, per) in arrays_of(field).items()}
    entries = vectors * field.k if field.kind == "top_k" else number
    if "ids" in sizes:
        sizes["ids"] = packed_bytes(entries, bits_for(field.vocab))
    if field.kind == "drawn":
        sizes["log_probs"] = sizes["counts"] = entries
    return sizes


def vectors_of(field: Field, positions: np.ndarray) -> np.ndarray:
    """Return how many vectors rows of so many kept positions have."""
    if not field.is_ragged:
        return np.full(len(positions), field.vectors_of(0))
    free = field.shape.count(-1)
    fixed = field.vectors_of(1)
    return fixed * positions**free
