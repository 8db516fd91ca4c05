"""A teacher that is read from disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from potstill.errors import InputError
from potstill.losses import TopK
from potstill.taps import Signal
from potstill.teachers.cache.batches import key_of
from potstill.teachers.cache.fields import Field
from potstill.teachers.cache.folder import CacheReader


class CachedTeacher:
    """Returns the signal that a teacher showed when its cache was built. No model is held.

    Stands where a ``LiveTeacher`` does. The batch brings what the cache holds of its samples: let a ``CachedCollator``
    make it. Not for data that is augmented, and not for objectives that show the teacher anything but the samples.

    Args:
        reader: The cache.
        outputs: Names of outputs to return, dotted; each must be kept.
        taps: Taps to return, likewise.
        mode: How losses read outputs of which some classes are kept: "tail", "renormalised" or "sampled".
        name: Of the teacher, in keys of the batch.

    Raises:
        RecipeError: The cache does not keep an output or tap; the message names it.
    """

    def __init__(
        self,
        reader: CacheReader,
        *,
        outputs: Iterable[str] = (),
        taps: Iterable[str] = (),
        mode: str = "tail",
        name: str = "teacher",
    ):
        self.reader, self.mode, self.name = reader, mode, name
        self.head = None  # there is none that could be left out
        self.outputs, self._taps = list(outputs), list(taps)
        self.numbers = {one: reader.field(one) for one in [*self.outputs, *self._taps]}

    @property
    def taps(self) -> list[str]:
        """The taps that it returns."""
        return list(self._taps)

    @property
    def wanted(self) -> Sequence[int]:
        """Numbers of the fields that its batches have to bring."""
        return sorted(set(self.numbers.values()))

    def field(self, name: str) -> Field:
        """Return how an output or tap is kept."""
        return self.reader.fields[self.numbers[name]]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> CachedTeacher:
        """Do nothing: what it returns lies where the batch does."""
        return self

    def signal(self, batch: Mapping[str, Any], taps: Iterable[str] | None = None) -> Signal:
        """Return what the batch brings of the teacher.

        Args:
            batch: Made by a ``CachedCollator``.
            taps: Taps wanted this time; ``None`` = all.

        Raises:
            InputError: The batch was made otherwise.
        """
        names = [*self.outputs, *(self._taps if taps is None else taps)]
        found = {name: self._value(batch, name) for name in names}
        return Signal(
            {name: found[name] for name in self.outputs}, {n: x for n, x in found.items() if n not in self.outputs}
        )

    def _value(self, batch: Mapping[str, Any], name: str) -> Any:
        number, field = self.numbers[name], self.field(name)

        def part(name: str) -> torch.Tensor:
            key = key_of(self.name, number, name)
            if key not in batch:
                raise InputError(
                    "the batch brings nothing of the cached teacher",
                    where=f'batch key "{key}"',
                    hint="Let a CachedCollator make it, of samples of a NumberedDataset.",
                )
            return batch[key]

        if field.kind == "whole":
            return part("values")
        if field.kind == "drawn":
            return TopK(part("ids"), part("log_probs"), {}, field.vocab, part("counts"), mode=self.mode)
        tail = part("tail")
        return TopK(
            part("ids"),
            part("log_probs"),
            {t: tail[..., i] for i, t in enumerate(field.temperatures)},
            field.vocab,
            mode=self.mode,
            logsumexp=part("logsumexp") if field.logsumexp else None,
        )

    def refuse_sharing(self, student: nn.Module) -> None:
        """Do nothing: there is no parameter to share."""

    def close(self) -> None:
        """Do nothing: there is no tap to remove."""
