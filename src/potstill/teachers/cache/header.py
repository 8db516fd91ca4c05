"""What a cache is bound to: a run may read it only if teacher, data and everything between are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from potstill._version import __version__
from potstill.align.vocabulary import tokenizer_hash
from potstill.data.sources import fetch
from potstill.errors import IntegrityError, PotstillError, RecipeError

FORMAT = 1
"""Changes with what the files mean, and with every change of the code that changes what is written into them."""
LOOKED_AT = 256
"""So many samples of a training set are compared, evenly spaced; all of one that has no more."""
_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "_attn_implementation")
_HINTS = {
    "teacher": "Name the teacher that the cache was built with, or build a cache for this one.",
    "tokenizer": "Use the tokenizer or processor of the data that the cache was built on, or build it anew.",
    "data": "Give the data options that the cache was built with (seed included), or build it anew.",
    "format": "It was written by another version of Potstill: build it anew.",
}


def hash_of(value: Any) -> str:
    """Return the SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True, default=str).encode()).hexdigest()


def config_hash(model: nn.Module) -> str | None:
    """Return the hash of a model's configuration, without where it came from and what read it; None if it has none."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        return None
    return hash_of(_lasting(config.to_dict()))


def _lasting(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _lasting(v) for k, v in value.items() if k not in _VOLATILE}
    return [_lasting(v) for v in value] if isinstance(value, list | tuple) else value


def processor_hash(processor: Any) -> str | None:
    """Return the hash of what makes texts and pictures into tensors; None if the data needs nothing of the kind."""
    if processor is None:
        return None
    tokenizer = getattr(processor, "tokenizer", processor)
    parts: list[Any] = [tokenizer_hash(tokenizer)] if hasattr(tokenizer, "get_vocab") else []
    for part in (processor, getattr(processor, "image_processor", None), getattr(processor, "feature_extractor", None)):
        if part is not None and not hasattr(part, "get_vocab") and hasattr(part, "to_dict"):
            parts.append(_lasting(part.to_dict()))
    return hash_of(parts)


def data_fingerprint(dataset: Any, collator: Callable[[list[Any]], Mapping[str, Any]]) -> str:
    """Return a hash of the training set: its length and what the collator makes of up to 256 samples, one by one.

    Raises:
        RecipeError: A sample is not the same twice, or not in the next epoch: it is augmented.
    """
    size = len(dataset)
    numbers = sorted({round(i) for i in np.linspace(0, size - 1, min(size, LOOKED_AT))})
    digest = hashlib.sha256(str(size).encode())
    for sample in fetch(dataset, numbers):
        digest.update(_batch_hash(collator([sample])))
    return digest.hexdigest()


def refuse_changing(dataset: Any, collator: Callable[[list[Any]], Mapping[str, Any]], where: str = "data") -> None:
    """Refuse samples that are augmented: the teacher would have answered about others than the student is shown.

    Raises:
        RecipeError: says what to set.
    """
    numbers = sorted({0, len(dataset) // 2, len(dataset) - 1})
    before = [_batch_hash(collator([sample])) for sample in fetch(dataset, numbers)]
    again = []
    epoch = getattr(dataset, "epoch", 0)
    for moment in (epoch, epoch + 1):
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(moment)
        again.append([_batch_hash(collator([sample])) for sample in fetch(dataset, numbers)])
    if hasattr(dataset, "set_epoch"):
        dataset.set_epoch(epoch)
    if any(one != before for one in again):
        raise RecipeError(
            "the training samples change from epoch to epoch, and a cache holds the teacher's answers to one form of "
            "each",
            where=where,
            hint="Turn augmentation off (data.augment: none, data.views: 1), or run the teacher live.",
        )


def _batch_hash(batch: Mapping[str, Any]) -> bytes:
    digest = hashlib.sha256()
    for key, value in sorted(batch.items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
            value = value.detach().cpu().contiguous()
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.digest()


def make_header(
    *,
    teacher: Mapping[str, Any],
    processor: Any,
    data: Mapping[str, Any],
    fields: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the header of a cache, its own hash under "hash".

    Args:
        teacher: "model" (its name, for people), "class", "weights", "files", "config" (hashes) and "dtype".
        processor: Of the data source, or None.
        data: "rows" and "fingerprint".
        fields: What is kept, as ``Field.as_row`` gives it.
        settings: What else decides the bytes: batch size, rows of a file, seed.
    """
    header = {
        "format": FORMAT,
        "potstill": __version__,
        "torch": torch.__version__,
        "teacher": dict(teacher),
        "tokenizer": processor_hash(processor),
        "data": dict(data),
        "fields": [dict(row) for row in fields],
        "settings": dict(settings),
    }
    return header | {"hash": hash_of(header)}


def check_header(header: Any, where: str) -> dict[str, Any]:
    """Return a header that was read, if it is whole and of this format.

    Raises:
        IntegrityError: It is not.
    """
    if not isinstance(header, dict) or not isinstance(header.get("fields"), list) or "hash" not in header:
        raise IntegrityError("is no header of a cache", where=where)
    if header.get("format") != FORMAT:
        raise IntegrityError(
            "the cache has another format",
            where=f"{where}, format",
            expected=str(FORMAT),
            got=header.get("format"),
            hint=_HINTS["format"],
        )
    if hash_of({k: v for k, v in header.items() if k != "hash"}) != header["hash"]:
        raise IntegrityError("the header is not what was written", where=where, hint="Build the cache anew.")
    return header


def compare(header: Mapping[str, Any], wanted: Mapping[str, Any], where: str, kind: type[PotstillError]) -> None:
    """Refuse a cache of another teacher, tokenizer or data; names the first field that differs.

    Args:
        header: Of the cache.
        wanted: The same fields, or some of them, as this run has them.
        where: Recipe path of the cache, or its folder.
        kind: Class of the error.
    """
    for name, value in wanted.items():
        if isinstance(value, Mapping) and isinstance(header.get(name), Mapping):
            for key, inner in value.items():
                if header[name].get(key) != inner:
                    raise _differs(f"{name}.{key}", header[name].get(key), inner, where, kind)
        elif header.get(name) != value:
            raise _differs(name, header.get(name), value, where, kind)


def _differs(name: str, has: Any, wanted: Any, where: str, kind: type[PotstillError]) -> PotstillError:
    def short(value: Any) -> str:
        text = str(value)
        return f"{text[:12]}…" if len(text) == 64 else text

    return kind(
        f'the cache was built with another "{name}"',
        where=where,
        expected=f"{short(wanted)}, as this run has",
        got=short(has),
        hint=_HINTS.get(name.partition(".")[0], "Build the cache anew, in another folder."),
    )
