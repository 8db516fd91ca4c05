"""The folder of a cache: written file by file, read row by row."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from potstill.errors import InputError, IntegrityError, PotstillError, RecipeError, explain_disk, suggest
from potstill.teachers.cache.codecs import Arrays, arrays_of, decode, place, vectors_of
from potstill.teachers.cache.fields import Field
from potstill.teachers.cache.header import check_header, compare
from potstill.teachers.cache.shards import HINT, Shard, flush_folder, shard_name, write_shard

HEADER, MANIFEST, LOCK = "header.json", "manifest.json", ".lock"


class CacheWriter:
    """Writes a cache file by file, and goes on where an earlier process stopped.

    Args:
        folder: New, empty, or with what was written of the same cache.
        header: See ``make_header``; its "settings" hold ``shard_rows``.

    Attributes:
        header: That of the folder: what is to be gone on with.

    Raises:
        InputError: The folder holds something else, or another process writes to it.
        IntegrityError: It holds a cache of another teacher, data or form; names the field.
    """

    def __init__(self, folder: Path | str, header: Mapping[str, Any]):
        self.folder, self.header = Path(folder), dict(header)
        self.fields = [Field.read(row) for row in header["fields"]]
        self.rows, self.shard_rows = header["data"]["rows"], header["settings"]["shard_rows"]

    @contextmanager
    def open(self) -> Iterator[CacheWriter]:
        """Take the folder for as long as the context lasts."""
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise InputError("is a file", where=str(folder), expected="a folder")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            number = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise explain_disk(error, str(folder)) from error
        with open(number, "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError("another process is building this cache", where=str(folder)) from error
            self._begin()
            yield self

    def _begin(self) -> None:
        known = {HEADER, MANIFEST, LOCK, *(shard_name(i) for i in range(self.number))}
        strange = [p.name for p in self.folder.iterdir() if p.name.removesuffix(".tmp") not in known]
        stored = self.folder / HEADER
        if strange and not stored.exists():
            raise InputError(
                "the folder is not empty and holds no cache",
                where=str(self.folder),
                got=min(strange),
                hint="Choose another.",
            )
        for path in self.folder.glob("*.tmp"):  # what a killed process was writing
            path.unlink()
        if stored.exists():
            there = check_header(_read_json(stored), str(stored))
            rest = {k: v for k, v in self.header.items() if k != "hash"}
            compare(there, rest, str(self.folder), IntegrityError)
        else:
            _write_json(stored, self.header)

    @property
    def number(self) -> int:
        """How many files the cache has."""
        return -(-self.rows // self.shard_rows)

    def span(self, number: int) -> range:
        """Return the rows of a file."""
        return range(number * self.shard_rows, min(self.rows, (number + 1) * self.shard_rows))

    def is_done(self, number: int) -> bool:
        """Return whether a file is there and whole; one that is not is removed, to be written again."""
        path = self.folder / shard_name(number)
        if not path.exists():
            return False
        try:
            shard = Shard(path, self.fields, self.header["hash"])
            shard.verify()
            if range(shard.first, shard.first + shard.rows) == self.span(number):
                return True
        except IntegrityError:
            pass
        path.unlink()
        return False

    def write(self, number: int, rows: Sequence[Sequence[Arrays]], positions: np.ndarray) -> None:
        """Write a file; see ``write_shard``."""
        path = self.folder / shard_name(number)
        write_shard(path, self.fields, rows, positions, self.span(number).start, self.header["hash"])

    def finish(self) -> None:
        """Write the manifest: from now on the cache can be read."""
        files = []
        for number in range(self.number):
            path = self.folder / shard_name(number)
            files.append({"name": path.name, "first": self.span(number).start, "bytes": path.stat().st_size})
        _write_json(self.folder / MANIFEST, {"header": self.header, "files": files})


class CacheReader:
    """Reads rows of a finished cache, in any order and in any number of processes.

    Args:
        folder: The cache.
        where: Recipe path, for messages.

    Attributes:
        header: What it is bound to, see ``make_header``.
        fields: What it keeps.

    Raises:
        RecipeError: There is no cache.
        IntegrityError: It is not finished, or its manifest or header is damaged.
    """

    def __init__(self, folder: Path | str, where: str = "teacher.cache"):
        self.folder, self.where = Path(folder), where
        manifest = self.folder / MANIFEST
        if not manifest.is_file():
            if (self.folder / HEADER).is_file():
                raise IntegrityError(
                    "the cache is not finished",
                    where=str(self.folder),
                    hint='The same "potstill cache build" goes on where it stopped.',
                )
            raise RecipeError(
                "there is no cache", where=where, got=str(folder), hint='Build it: "potstill cache build RECIPE".'
            )
        content = _read_json(manifest)
        self.header = check_header(content.get("header") if isinstance(content, dict) else None, str(manifest))
        try:
            self.fields = [Field.read(row) for row in self.header["fields"]]
            self.files = [
                (self.folder / Path(f["name"]).name, int(f["first"]), int(f["bytes"])) for f in content["files"]
            ]
            self.rows = int(self.header["data"]["rows"])
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError("is no manifest of a cache", where=str(manifest), got=str(error)) from error
        self._firsts = np.array([first for _, first, _ in self.files])
        self._shards: dict[int, Shard] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}  # every data worker maps the files itself

    def field(self, name: str) -> int:
        """Return the number of a field.

        Raises:
            RecipeError: The cache does not keep it.
        """
        names = [field.name for field in self.fields]
        if name not in names:
            raise RecipeError(
                f'the cache does not hold "{name}" of the teacher',
                where=self.where,
                hint=f'{suggest(name, names)} Build one that does, or add it with "--fields".',
            )
        return names.index(name)

    def shard(self, number: int) -> Shard:
        """Return a file, mapped.

        Raises:
            IntegrityError: It is missing or damaged.
        """
        if number not in self._shards:
            path, first, size = self.files[number]
            shard = Shard(path, self.fields, self.header["hash"])
            if shard.first != first or path.stat().st_size != size:
                raise IntegrityError("this file of the cache is another", where=str(path), hint=HINT)
            self._shards[number] = shard
        return self._shards[number]

    def read(
        self, rows: Sequence[int], wanted: Sequence[int], kept: Callable[[Field], Tensor | None]
    ) -> list[dict[str, Tensor]]:
        """Return some fields of some rows, placed as the teacher's were in a batch of these samples.

        Args:
            rows: Numbers of samples, in any order.
            wanted: Numbers of fields.
            kept: Which positions of the batch a field keeps, ``[B, T]``; see ``Field.kept``.

        Raises:
            IntegrityError: A row is damaged, or belongs to a sample of another length.
        """
        chosen: list[list[Arrays]] = []
        positions = np.zeros((len(rows), len(self.fields)), dtype=np.int64)
        for b, row in enumerate(rows):
            if not 0 <= row < self.rows:
                raise IntegrityError(
                    "the cache has no such sample", where=self.where, expected=f"0 to {self.rows - 1}", got=row
                )
            number = int(np.searchsorted(self._firsts, row, side="right")) - 1
            shard = self.shard(number)
            chosen.append(shard.read(row - shard.first, wanted))
            positions[b] = shard.positions[row - shard.first]
        found = []
        for j, i in enumerate(wanted):
            field = self.fields[i]
            mask = kept(field)
            if mask is not None and field.is_ragged:
                self._check_lengths(field, mask, positions[:, i], rows)
            arrays = {n: np.concatenate([row[j][n] for row in chosen]) for n in arrays_of(field)}
            vectors = vectors_of(field, positions[:, i])
            found.append(place(field, decode(field, arrays, vectors), mask, len(rows)))
        return found

    def _check_lengths(self, field: Field, mask: Tensor, positions: np.ndarray, rows: Sequence[int]) -> None:
        lengths = mask.sum(1).cpu().numpy()
        if (lengths != positions).any():
            b = int((lengths != positions).argmax())
            raise IntegrityError(
                f'sample {rows[b]} is another than when the cache was built: "{field.mask}" counts other positions',
                where=self.where,
                expected=f"{positions[b]} positions",
                got=int(lengths[b]),
                hint="Give the data options that the cache was built with, or build it anew.",
            )

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[PotstillError]:
        """Read everything; return what is wrong with each file that is damaged.

        Args:
            progress: Called with (files done, files in all).
        """
        found: list[PotstillError] = []
        done = 0
        for number in range(len(self.files)):
            try:
                shard = self.shard(number)
                shard.verify()
                if shard.first != done:
                    raise IntegrityError("rows are missing before this file", where=str(shard.path), hint=HINT)
            except IntegrityError as error:
                found.append(error)
            self._shards.pop(number, None)
            done = self.files[number + 1][1] if number + 1 < len(self.files) else self.rows
            if progress is not None:
                progress(number + 1, len(self.files))
        return found

    def info(self) -> dict[str, Any]:
        """Return what there is to know: what it is bound to, its fields, bytes in all and for each kept position."""
        size = sum(path.stat().st_size for path, _, _ in self.files if path.exists())
        counts = np.zeros(len(self.fields), dtype=np.int64)
        each = [dict.fromkeys(arrays_of(f), 0) for f in self.fields]
        for number in range(len(self.files)):
            shard = self.shard(number)
            counts += shard.positions.sum(0)
            for sums, sizes in zip(each, shard.bytes_by_array()):
                for name, value in sizes.items():
                    sums[name] += value
            self._shards.pop(number, None)
        fields = []
        for field, count, sums in zip(self.fields, counts.tolist(), each):
            total = sum(sums.values())
            fields.append(
                {
                    **field.as_row(),
                    "positions": count,
                    "bytes": total,
                    "bytes_per_position": round(total / max(1, count), 2),
                }
            )
        return {**self.header, "rows": self.rows, "files": len(self.files), "bytes": size, "fields": fields}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError(
            f"cannot be read as JSON ({error})", where=str(path), hint="Delete it and build again: what is whole stays."
        ) from error


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush_folder(path.parent)
    except OSError as error:
        raise explain_disk(error, str(path)) from error
