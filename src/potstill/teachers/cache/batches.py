"""Samples that know their number, and a collator that adds to every batch what the teacher showed on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from potstill.data.sources import fetch
from potstill.teachers.cache.folder import CacheReader

ROW = "cache_row"
PREFIX = "cached"


class NumberedDataset(torch.utils.data.Dataset):
    """A dataset whose samples come as (number, sample); everything else is that of the dataset itself.

    Args:
        dataset: Map-style.
    """

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[int, Any]]:
        """Return the samples of a batch with their numbers."""
        size = len(self.dataset)
        numbers = [index + size if index < 0 else int(index) for index in indices]
        return list(zip(numbers, fetch(self.dataset, indices)))

    def __getattr__(self, name: str) -> Any:
        # set_epoch, is_generated and whatever else the trainer asks a dataset for. Not before __init__ (unpickling).
        if name == "dataset" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)


class CachedCollator:
    """Puts numbered samples into one batch and adds to it what caches hold of them.

    Runs where batches are made, in the data workers if there are any: the cache is read while the student trains. The
    batch gets ``cache_row`` long ``[B]`` and, behind all other keys, ``cached.<teacher>.<field>.<part>``.

    Args:
        collator: Makes a batch of the samples.
        readers: Of each teacher by name, and the numbers of the fields that are wanted.
    """

    def __init__(
        self,
        collator: Callable[[list[Any]], dict[str, Any]],
        readers: Mapping[str, tuple[CacheReader, Sequence[int]]],
    ):
        self.collator = collator
        self.readers = {name: (reader, list(wanted)) for name, (reader, wanted) in readers.items()}

    def __call__(self, samples: Sequence[tuple[int, Any]]) -> dict[str, Any]:
        """Return the batch."""
        numbers = [number for number, _ in samples]
        batch = dict(self.collator([sample for _, sample in samples]))
        more: dict[str, torch.Tensor] = {ROW: torch.tensor(numbers)}
        for name, (reader, wanted) in self.readers.items():
            found = reader.read(numbers, wanted, lambda field: field.kept(batch))
            for i, parts in zip(wanted, found):
                more |= {key_of(name, i, part): value for part, value in parts.items()}
        return batch | more

    def __getattr__(self, name: str) -> Any:
        if name in ("collator", "readers") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.collator, name)


def key_of(teacher: str, field: int, part: str) -> str:
    """Return the key of a batch under which one tensor of a field stands."""
    return f"{PREFIX}.{teacher}.{field}.{part}"
