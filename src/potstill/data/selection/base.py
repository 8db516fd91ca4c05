"""What a selection policy is: before every epoch it says which training samples the epoch is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from potstill.errors import IntegrityError
from potstill.registry import Registry

Read = Callable[[torch.Tensor, Mapping[str, Any]], torch.Tensor]


@dataclass(frozen=True)
class Pool:
    """The training samples a policy chooses from, without augmentation; nothing is computed before it asks.

    Attributes:
        size: Number of samples, n.
        student: Returns the student's output for all samples, ``(n, ...)``, in eval mode, on the CPU.
        teacher: Returns the teacher's output for the samples of these numbers (None = all), ``(m, ...)``.
        batch: Returns an entry of the batch for all samples, such as "labels", ``(n, ...)``.
        measure: ``measure("student" or "teacher", read, indices)`` returns what ``read(output, batch)`` makes of every
            batch of these samples (None = all), joined ``(m, ...)``: for outputs too large to be kept, such as those of
            all tokens. The model is in eval mode and has no graph.
        heldout: The samples of the policy's ``heldout`` split; None if it names none.
    """

    size: int
    student: Callable[[], torch.Tensor]
    teacher: Callable[[torch.Tensor | None], torch.Tensor]
    batch: Callable[[str], torch.Tensor]
    measure: Callable[[str, Read, torch.Tensor | None], torch.Tensor] | None = None
    heldout: Pool | None = None


@dataclass(frozen=True)
class Chosen:
    """What an epoch is made of.

    Attributes:
        indices: Numbers of the samples, ``(m,)``, each at most once, at least one. The epoch shuffles them; it repeats
            them if it is longer.
        batch: What else every batch is to hold of them: key -> ``(m, ...)`` in the order of ``indices``, such as
            "sample_weight".
        facts: What the history tells of the choice: numbers by name.
        order: The whole epoch sample by sample, which may then have some of them more often than others; None = the
            epoch shuffles them.
    """

    indices: torch.Tensor
    batch: Mapping[str, torch.Tensor] = field(default_factory=dict)
    facts: Mapping[str, float] = field(default_factory=dict)
    order: torch.Tensor | None = None


class SelectionPolicy:
    """Chooses the samples of every epoch.

    A subclass says how long an epoch is (``length``: always the same, so that a run can be resumed in its middle) and
    chooses (``choose``). What it remembers from epoch to epoch goes into ``state_dict`` as plain data.

    Attributes:
        on: Output of the student, and of the teacher unless ``teacher_on`` names another, that the pool gives.
        teacher_on: Output of the teacher; None = as ``on``.
        keys: Entries of the batches that the epochs get beside those of the data (see ``Chosen.batch``).
        heldout: Split of the data that the pool is to give beside the training set; None = none.
        rows_per_step: Samples that one step sees, of all processes together; set before anything is asked.
    """

    on = "logits"
    teacher_on: str | None = None
    keys: tuple[str, ...] = ()
    heldout: str | None = None
    rows_per_step: int = 1

    def length(self, size: int) -> int:
        """Return how many samples an epoch has, given the size of the pool."""
        raise NotImplementedError(f"{type(self).__name__} must say how long an epoch is")

    def choose(self, pool: Pool, epoch: int) -> Chosen:
        """Choose the samples of an epoch, the first of which is 0."""
        raise NotImplementedError(f"{type(self).__name__} must choose")

    def state_dict(self) -> dict[str, Any]:
        """Return what it remembers, as plain data."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what ``state_dict`` returned."""
        if not isinstance(state, dict) or state.keys() != self.state_dict().keys():
            raise IntegrityError("holds no state of this selection", where="selection")


SELECTIONS: Registry[type[SelectionPolicy]] = Registry("selection")
