"""Data sources: what a recipe's ``data.source`` can name, each giving datasets by split, a collator and a processor."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from potstill.registry import Registry


@dataclass
class DataSource:
    """Everything a run needs to know about its data.

    Attributes:
        make: ``make(split, size)`` returns a map-style dataset; ``size`` None = the split's own length.
        collator: Turns a list of samples into a batch of tensors.
        processor: Saved beside the student (tokenizer, image processor), or None.
        model_fields: Fields a model made for this data must have in its configuration: vocabulary, labels, image size.
        facts: What the plan says about the data.
        plain: Makes the training samples without augmentation; None = they are not augmented.
        teacher_fields: As ``model_fields``, for teachers; None = the same.
    """

    make: Callable[[str, int | None], Any]
    collator: Callable[[list[Any]], dict[str, Any]]
    processor: Any | None = None
    model_fields: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    plain: Callable[[int | None], Any] | None = None
    teacher_fields: Mapping[str, Any] | None = None

    @property
    def teacher_collator(self) -> Callable[[list[Any]], dict[str, Any]]:
        """What makes batches for a teacher alone: the same, or a part of one that makes them for two tokenizers."""
        return getattr(self.collator, "teacher", self.collator)

    def split(self, name: str, size: int | None = None) -> Any:
        """Return the dataset of a split."""
        return self.make(name, size)

    def plain_train(self, size: int | None = None) -> Any:
        """Return the training samples without augmentation: of equal number and order where the data augments."""
        return self.make("train", size) if self.plain is None else self.plain(size)

    def example(self) -> dict[str, Any]:
        """Return a batch of the first two training samples, of one twice if there is only one: to probe shapes on."""
        data = self.split("train")
        return self.collator([data[0], data[min(1, len(data) - 1)]])

    def describe(self) -> dict[str, Any]:
        """Return the plan's row about the data."""
        return dict(self.facts)


def check_index(index: Any, size: int) -> int:
    """Return the number of a sample, counted from the end if negative."""
    number = operator.index(index)
    number += size if number < 0 else 0
    if not 0 <= number < size:
        raise IndexError(f"sample {number} of {size}")
    return number


def fetch(dataset: Any, indices: Sequence[int]) -> list[Any]:
    """Return the samples of a map-style dataset, all at once if it can."""
    rows = list(indices)
    together = getattr(dataset, "__getitems__", None)
    return together(rows) if together else [dataset[i] for i in rows]


DATA: Registry[Callable[..., DataSource]] = Registry("data source")
