"""One file of a cache: the rows of some samples, each with a checksum, written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from potstill.errors import IntegrityError, explain_disk
from potstill.teachers.cache.codecs import Arrays, arrays_of, entries_of, sizes_of, vectors_of
from potstill.teachers.cache.fields import Field

_DTYPES = {"U8": np.uint8, "I8": np.int8, "U16": np.uint16, "F16": np.float16, "U32": np.uint32, "F32": np.float32}
FACTS = "cache"
HINT = 'Run "potstill cache verify" to list what is damaged, delete those files, and build again: only they are made.'


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"rows-{number:06d}.safetensors"


def write_shard(
    path: Path, fields: Sequence[Field], rows: Sequence[Sequence[Arrays]], positions: np.ndarray, first: int, bound: str
) -> None:
    """Write the rows of one file: beside it, flushed to disk, then renamed.

    Args:
        path: The file.
        fields: What is kept.
        rows: Of each row the arrays of each field.
        positions: Kept positions of each row and field, ``[R, fields]``; of one that varies not, all.
        first: Number of the first row.
        bound: Hash of the header these rows belong to.

    Raises:
        IntegrityError: The disk is full, or refuses for another reason; what was there stays.
    """
    tensors: dict[str, np.ndarray] = {"positions": positions.astype(np.uint32)}
    for i, field in enumerate(fields):
        for name, (dtype, _) in arrays_of(field).items():
            tensors[f"{i}.{name}"] = np.concatenate([row[i][name] for row in rows]).astype(dtype, copy=False)
    checks = [
        [_checksum(positions[r, i], [row[i][n] for n in arrays_of(f)]) for i, f in enumerate(fields)]
        for r, row in enumerate(rows)
    ]
    tensors["crc"] = np.array(checks, dtype=np.uint32)
    facts = {"first": str(first), "rows": str(len(rows)), "header": bound}
    facts["digest"] = _digest(tensors, facts)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            # One entry: the library writes several in an order that differs from process to process.
            file.write(save(tensors, metadata={FACTS: json.dumps(facts, sort_keys=True)}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        told = explain_disk(error, str(path))
        told.hint = (told.hint or "").split(";")[0] + "; the same command then goes on where it stopped."
        raise told from error


def flush_folder(folder: Path) -> None:
    """Make the names of a folder's files last."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


class Shard:
    """A file of a cache, mapped into memory: a row is read from disk when it is asked for, and checked.

    Args:
        path: The file.
        fields: What the cache keeps.
        bound: Hash of the header the rows must belong to.

    Attributes:
        first: Number of its first row.
        rows: How many it has.
        positions: Kept positions of each row and field, ``[R, fields]``.

    Raises:
        IntegrityError: The file is missing, cut short, damaged in its head, or belongs to another cache.
    """

    def __init__(self, path: Path, fields: Sequence[Field], bound: str):
        self.path, self.fields = path, list(fields)
        self._tensors, self.facts = _open(path)
        try:
            self.first, self.rows = int(self.facts["first"]), int(self.facts["rows"])
            self.positions = self._tensors["positions"].astype(np.int64)
            if self.positions.shape != (self.rows, len(fields)) or self._tensors["crc"].shape != self.positions.shape:
                raise ValueError("its lists of rows do not fit")
            self._starts = [self._find(i, field) for i, field in enumerate(fields)]
        except (KeyError, ValueError, IndexError) as error:
            raise damaged(path, f"its head does not fit ({error})") from error
        if self.facts.get("header") != bound:
            raise damaged(path, "it was written for another cache")

    def _find(self, i: int, field: Field) -> dict[str, np.ndarray]:
        """Return where the rows of each array begin, and the end of the last."""
        positions, entries = self.positions[:, i], None
        arrays = {name: self._tensors[f"{i}.{name}"] for name in arrays_of(field)}
        for name, (dtype, _) in arrays_of(field).items():
            if arrays[name].dtype != dtype or arrays[name].ndim != 1:
                raise ValueError(f"array {i}.{name}")
        if field.kind == "drawn":
            vectors = vectors_of(field, positions)
            if vectors.sum() != len(arrays["number"]):
                raise ValueError(f"array {i}.number")
            entries = entries_of(arrays["number"], vectors)
        starts = {}
        for name, sizes in sizes_of(field, positions, entries).items():
            starts[name] = np.concatenate([[0], np.cumsum(sizes)])
            if starts[name][-1] != len(arrays[name]):
                raise ValueError(f"array {i}.{name}")
        return starts

    def read(self, row: int, wanted: Sequence[int]) -> list[Arrays]:
        """Return the arrays of some fields of a row of this file, by their numbers.

        Raises:
            IntegrityError: A bit of the row is not what was written.
        """
        found = []
        for i in wanted:
            starts = self._starts[i]
            arrays = {
                n: self._tensors[f"{i}.{n}"][starts[n][row] : starts[n][row + 1]] for n in arrays_of(self.fields[i])
            }
            if _checksum(self.positions[row, i], list(arrays.values())) != int(self._tensors["crc"][row, i]):
                raise damaged(self.path, f'"{self.fields[i].name}" of row {self.first + row} is not what was written')
            found.append(arrays)
        return found

    def bytes_by_array(self) -> list[dict[str, int]]:
        """Return how many bytes each array of each field takes."""
        return [{n: self._tensors[f"{i}.{n}"].nbytes for n in arrays_of(f)} for i, f in enumerate(self.fields)]

    def verify(self) -> None:
        """Raise ``IntegrityError`` unless every bit is what was written."""
        facts = {k: v for k, v in self.facts.items() if k != "digest"}
        if _digest(self._tensors, facts) != self.facts.get("digest"):
            for row in range(self.rows):
                self.read(row, range(len(self.fields)))
            raise damaged(self.path, "its content is not what was written")


def damaged(path: Path, why: str) -> IntegrityError:
    """Return the error of a file that cannot be used."""
    return IntegrityError(f"this file of the cache is damaged: {why}", where=str(path), hint=HINT)


def _open(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Map a safetensors file; the library's own reader copies every slice it returns."""
    try:
        size = path.stat().st_size
        whole = np.memmap(path, dtype=np.uint8, mode="r") if size else np.zeros(0, np.uint8)
    except FileNotFoundError as error:
        raise IntegrityError("this file of the cache is missing", where=str(path), hint=HINT) from error
    except OSError as error:
        raise explain_disk(error, str(path)) from error
    try:
        length = int.from_bytes(whole[:8].tobytes(), "little")
        if not 0 < length <= size - 8:
            raise ValueError("cut short")
        head = json.loads(whole[8 : 8 + length].tobytes())
        facts, tensors, end = json.loads(head.pop("__metadata__")[FACTS]), {}, 0
        for name, row in head.items():
            start, stop = row["data_offsets"]
            if not 0 <= start <= stop <= size - 8 - length:
                raise ValueError("cut short")
            data = whole[8 + length + start : 8 + length + stop]
            tensors[name] = data.view(_DTYPES[row["dtype"]]).reshape(row["shape"])
            end = max(end, stop)
        if end != size - 8 - length:
            raise ValueError("of another length than it says")
        # Plain arrays: every slice of a memmap costs what several do.
        return {name: np.asarray(x) for name, x in tensors.items()}, dict(facts)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, f"it is no whole file ({error})") from error


def _checksum(positions: int, arrays: Sequence[np.ndarray]) -> int:
    value = zlib.crc32(int(positions).to_bytes(8, "little"))
    for array in arrays:
        value = zlib.crc32(np.ascontiguousarray(array).view(np.uint8), value)
    return value


def _digest(tensors: Mapping[str, np.ndarray], facts: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode())
    for name, array in sorted(tensors.items()):
        digest.update(f"{name}{array.shape}{array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8) if array.size else b"")
    return digest.hexdigest()
