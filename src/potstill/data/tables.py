"""Tables of your own: reading them, choosing rows for each split, and naming what is wrong with them."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from potstill.errors import InputError, suggest

READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
ROLES = ("image", "text", "label")
_SHARES = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}  # of ten


def read_splits(path: str | Path) -> dict[str, Any]:
    """Return the tables of a folder written by ``datasets.save_to_disk``, or of one file, by split.

    One table without splits is cut into train, validation and test (8 : 1 : 1) by a stable hash of the row number, so
    a row stays where it is whatever the seed.

    Raises:
        InputError: if there is nothing to read there, the format is unknown, or ``datasets`` is not installed.
    """
    path = Path(path)
    try:
        import datasets
    except ImportError:
        raise InputError(
            "reading tables needs the package datasets", where="path", hint='Run: pip install "potstill[datasets]"'
        ) from None
    if not os.path.exists(path):  # False, where Path.exists raises for a name longer than names can be
        raise InputError("there is no such file or folder", where="path", got=str(path))
    if path.is_file() and path.suffix not in READERS:
        raise InputError("unknown format", where="path", expected=", ".join(READERS) + " or a folder", got=path.name)
    try:
        if path.is_dir():
            table = datasets.load_from_disk(str(path))
        else:
            table = datasets.load_dataset(READERS[path.suffix], data_files=str(path), split="train")
    except (FileNotFoundError, ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            "the table cannot be read",
            where="path",
            got=str(error).splitlines()[0],
            hint="A folder must be one that datasets.save_to_disk wrote.",
        ) from error
    if isinstance(table, datasets.DatasetDict):
        return dict(table)
    rows: dict[str, list[int]] = {split: [] for split in _SHARES}
    for row in range(len(table)):
        tenth = hashlib.blake2b(str(row).encode(), digest_size=2).digest()[0] % 10
        rows[next(split for split, share in _SHARES.items() if tenth in share)].append(row)
    return {split: table.select(chosen) for split, chosen in rows.items()}


class TableDataset(Dataset):
    """Rows of a table as samples: a dict with ``index`` and whichever of ``image``, ``text``, ``label`` are mapped.

    Args:
        table: Anything with a length whose items are dicts.
        columns: Role ("image", "text", "label") to column name.
        labels: Classes, in the order of their numbers; a label is then a number below their count, or one of them.
        folder: Where relative picture paths start.
        size: Only the first rows; None = all.
    """

    def __init__(
        self,
        table: Any,
        columns: Mapping[str, str],
        labels: Sequence[str] | None = None,
        folder: str | Path = ".",
        size: int | None = None,
    ):
        self.table, self.columns, self.folder = table, dict(columns), Path(folder)
        self.labels = None if labels is None else [str(label) for label in labels]
        self._numbers = {label: number for number, label in enumerate(self.labels or ())}
        self.size = len(table) if size is None else min(size, len(table))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < 0:
            index += self.size
        if not 0 <= index < self.size:
            raise IndexError(f"row {index} of {self.size}")
        row = self.table[index]
        sample: dict[str, Any] = {"index": index}
        for role, column in self.columns.items():
            sample[role] = getattr(self, f"_{role}")(row[column], f"row {index}, column {column}")
        return sample

    def _image(self, value: Any, where: str) -> Image.Image:
        """Return the picture, from a picture, encoded bytes or a path."""
        try:
            if isinstance(value, Mapping):
                value = io.BytesIO(value["bytes"]) if value.get("bytes") else value["path"]
            elif isinstance(value, bytes):
                value = io.BytesIO(value)
            if isinstance(value, str):
                value = self.folder / value
            picture = value if isinstance(value, Image.Image) else Image.open(value)
            return picture.convert("RGB")
        except (OSError, UnidentifiedImageError, AttributeError, KeyError, TypeError) as error:
            raise InputError("the picture cannot be read", where=where, got=str(error)) from error

    def _text(self, value: Any, where: str) -> str:
        if not isinstance(value, str):
            raise InputError("not a text", where=where, expected="a string", got=value)
        return value

    def _label(self, value: Any, where: str) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(self._numbers):
            return value
        if str(value) in self._numbers:
            return self._numbers[str(value)]
        raise InputError("unknown label", where=where, got=value, hint=suggest(str(value), self._numbers))


def check_columns(columns: Mapping[str, str], table: Any) -> dict[str, str]:
    """Return the mapping after checking roles and columns.

    Raises:
        InputError: if a role is unknown, a column is not in the table, or nothing but a label is mapped.
    """
    for role, column in columns.items():
        if role not in ROLES:
            raise InputError(f'unknown role "{role}"', where="columns", hint=suggest(str(role), ROLES))
        if column not in table.column_names:
            raise InputError(
                f'the table has no column "{column}"',
                where=f"columns.{role}",
                hint=suggest(str(column), table.column_names),
            )
    if not set(columns) & {"image", "text"}:
        raise InputError("nothing to look at or read", where="columns", expected="image, text, or both")
    return dict(columns)


def find_labels(table: Any, column: str) -> list[str]:
    """Return the classes of a label column: its declared names, or its distinct values in order."""
    feature = table.features[column]
    if hasattr(feature, "names"):
        return list(feature.names)
    values = set(table.unique(column))
    if None in values:
        raise InputError("some labels are missing", where="columns.label", hint="Remove those rows.")
    return [str(value) for value in sorted(values)]
