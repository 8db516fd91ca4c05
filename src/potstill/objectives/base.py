"""An objective: which tensors of teacher and student are compared, by which loss, with which weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from potstill.align.masks import token_mask
from potstill.errors import RecipeError
from potstill.losses.fused import BUDGET, Term
from potstill.registry import Registry
from potstill.taps import Signal, Tap

IGNORE_INDEX = -100
TEACHER = "teacher"
"""What the recipe's own teacher is called where there are several."""
Role = Literal["task", "prediction", "hidden"]


@dataclass
class Seen:
    """What one step shows an objective.

    Attributes:
        batch: What the collator made.
        student: The student's signal; None in a survey, which looks at the teacher alone.
        teacher: The signal of the objective's teacher (the first of ``Objective.of``), or None.
        teachers: The signals of all its teachers by name.
        progress: Share of the training that is done, in [0, 1): for schedules.
        epoch: Passes over the training set that are done, with a fraction.
        second: The student's signal for ``Objective.second_view``, or None if the objective has none.
        logits_budget: Bytes that logits may take at a time where they come as ``LazyLogits``.
    """

    batch: Mapping[str, Any]
    student: Signal | None
    teacher: Signal | None = None
    teachers: Mapping[str, Signal] = field(default_factory=dict)
    progress: float = 0.0
    epoch: float = 0.0
    second: Signal | None = None
    logits_budget: int = BUDGET


def is_tap(name: str) -> bool:
    """True if the name of an output is a tap in its text form, ``path@output``: read inside the model."""
    return "@" in name


def check_output(name: str, where: str) -> None:
    """Refuse an output that is a malformed tap, or a tap that could match several modules."""
    if is_tap(name):
        Tap.parse(name, where)
        if any(c in name.partition("@")[0] for c in "*?["):
            raise RecipeError("names several modules", where=where, expected="the path of one module", got=name)


def read_output(signal: Signal, name: str) -> torch.Tensor:
    """Return an output of the model by its name, or what a tap saw where the model does not return it."""
    return signal.tapped[name] if is_tap(name) else signal.outputs[name]


def outputs_and_taps(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the name as the one output, or the one tap, that an objective asks for."""
    return ((), (name,)) if is_tap(name) else ((name,), ())


def check_skip(skip: object, name: str) -> None:
    """Refuse a number of tokens to pass over that is none."""
    if isinstance(skip, bool) or not isinstance(skip, int) or not 0 <= skip <= 4096:
        raise RecipeError("no number of tokens", where=f"{name}.skip", expected="0 to 4096", got=skip)


def check_number(
    value: Any, where: str, low: float, high: float = math.inf, *, whole: bool = False, is_open: bool = False
) -> None:
    """Refuse what is no number from ``low`` to ``high``, ``low`` itself only if ``is_open`` is False."""
    fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not low <= value <= high or (is_open and value == low):
        what = "a whole number" if whole else "a number"
        least = f"above {low}" if is_open else f"of {low} or more"
        most = "" if high == math.inf else f", at most {high}"
        raise RecipeError("does not fit", where=where, expected=f"{what} {least}{most}", got=value)


def refuse_unknown_classes(targets: torch.Tensor, classes: int, where: str) -> None:
    """Refuse labels beyond the classes, which ends a CPU kernel with an index error and a GPU's with the process."""
    largest = int(targets.max()) if targets.numel() else 0
    if largest >= classes:
        raise RecipeError(
            "the batch has labels that are no class", where=where, expected=f"0 to {classes - 1}", got=largest
        )


OBJECTIVES: Registry[type[Objective]] = Registry("loss")
"""Objectives that a recipe names as its loss: ``cls(name, *, weight, <fields of the section>, <options>)``."""


class Objective:
    """One weighted term of the training loss.

    A subclass says what it reads (``student_outputs``, ``teacher_outputs``, ``student_taps``, ``teacher_taps``), how
    many units of a batch count (``count``; known from the batch alone, so that a whole accumulation window can be
    counted before its first backward pass), and the **sum** of the loss over those units (``total``). The trainer
    divides by the count over the window and all ranks, so gradients do not depend on how a batch is split.

    Attributes:
        name: Unique in a recipe; the key in logs.
        weight: Its factor in the loss.
        role: "task" (labels), "prediction" (the teacher's outputs) or "hidden" (the teacher's inside).
        module: The module it belongs to; a policy gates only objectives that have one.
        alpha: Name of an automatic factor beside the weight, None = there is none. It makes the objectives that share
            it together as large as those they are measured against: mean over mean, in the first 50 steps, then frozen.
        against: Names of the objectives that factor is measured against; empty = all with the role "prediction", or,
            if there are none, "task".
        balanced: True if its weight is one of those that GradMag sets (``weight: gradmag``).
        of: Names of the teachers it reads; each is asked for ``teacher_outputs`` and ``teacher_taps``.
        learning_rate: Of its part; None = that of all parts.
        surveys: True if it has to see the training set once before training: it then gets ``look`` for every batch, and
            ``finish``. What it learns there belongs in buffers of its part, so that it is in every checkpoint.
        around: Called with the student, gives a context manager within which the student runs for this objective; what
            it yields is the entry of ``Signal.notes`` under it. Equal ones of several objectives are entered once.
        on: The output it reads, if it reads one; None = as ``student_outputs`` say.
        crosses_tokenizers: True if teacher and student may have read the text in different tokens. It is then told of
            both tokenizers by ``read_tokenizers``.
        reads_weights: True if it looks at the teacher's weights (in ``meet``): its teacher then has to be in memory.
        takes_lazy: True if the output it reads, of student and teacher, may come as ``LazyLogits``: for
            ``lazy_term``, or for ``total`` where there is none.
        batch_coupled: True if rows of a batch influence each other (contrastive, correlation, CKA losses): the value
            then depends on the micro-batch, under accumulation and several ranks it is the mean over micro-batches.
    """

    role: Role = "prediction"
    batch_coupled = False
    takes_lazy = False
    student_outputs: tuple[str, ...] = ()
    teacher_outputs: tuple[str, ...] = ()
    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    needs_labels = False
    on: str | None = None
    of: tuple[str, ...] = (TEACHER,)
    learning_rate: float | None = None
    surveys = False
    reads_weights = False
    around: Callable[[nn.Module], AbstractContextManager[Any]] | None = None
    crosses_tokenizers = False
    balanced = False

    def __init__(
        self,
        name: str,
        *,
        weight: float = 1.0,
        module: str | None = None,
        alpha: str | None = None,
        against: Sequence[str] = (),
    ):
        if not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise RecipeError("the weight must be finite and not negative", where=f"{name}.weight", got=weight)
        self.name, self.weight, self.module = name, float(weight), module
        self.alpha, self.against = alpha, tuple(against)

    @property
    def reads_teacher(self) -> bool:
        """True if it compares with a teacher."""
        return bool(self.teacher_outputs or self.teacher_taps)

    def build_part(self, student: Signal, teacher: Signal | None) -> nn.Module | None:
        """Return the trainable helper this objective needs, made to fit the probed shapes, or None.

        ``teacher`` is the signal of its first teacher.
        """
        return None

    def meet(self, student: nn.Module, teachers: Mapping[str, nn.Module]) -> None:
        """Look at the models themselves, before anything is tapped: to find layers by what the models are."""

    def read_tokenizers(self, student: Any, teacher: Any) -> None:
        """Look at the tokenizers, where ``crosses_tokenizers`` says that it wants to."""

    def second_view(self, batch: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return the batch as the student is to see it a second time (restyled, say), or None if once is enough."""
        return None

    def look(self, seen: Seen, part: nn.Module | None) -> None:
        """Take in one batch of the survey: without augmentation where the data can, with the teachers' signals only."""

    def finish(self, part: nn.Module | None) -> None:
        """Draw the conclusions of the survey."""

    def before_step(self, student: nn.Module, part: nn.Module | None) -> None:
        """Put something right in place before the first forward pass of an optimiser step; no graph is kept."""

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return how many units of the batch count, a scalar tensor."""
        raise NotImplementedError(f"{type(self).__name__} must say what it counts")

    def total(self, seen: Seen, part: nn.Module | None) -> torch.Tensor:
        """Return the sum of the loss over the units that count: a scalar, fp32 or better, in nats where it can be."""
        raise NotImplementedError(f"{type(self).__name__} must compute its loss")

    def notes(self, part: nn.Module | None) -> dict[str, float]:
        """Return what the history is to tell beside its value: numbers by name, on the first rank alone."""
        return {}

    def lazy_term(self, seen: Seen) -> Term | None:
        """Return what ``total`` computes as a term on the student's ``LazyLogits``, to be computed beside others.

        None = it is more than one term: ``total`` takes the ``LazyLogits`` itself.
        """
        return None

    def describe(self) -> dict[str, Any]:
        """Return the plan's row about this objective."""
        return {
            "name": self.name,
            "loss": getattr(self, "loss_name", type(self).__name__),
            "role": self.role,
            "weight": self.weight,
            "alpha": self.alpha,
            "module": self.module,
            **({"teachers": list(self.of)} if self.of != (TEACHER,) else {}),
            "on": self.on or ", ".join(self.student_outputs) or None,
        }


@dataclass(frozen=True)
class Where:
    """Which positions of a batch count: those of a mask that are not zero, or of labels that are not -100.

    Neither = every row. A mask whose shape differs from the tensor's leading shape but counts its rows (one entry per
    image, say) is given as ``rows``.
    """

    mask: str | None = None
    labels: str | None = None
    rows: str | None = None

    def mask_of(self, batch: Mapping[str, Any]) -> torch.Tensor | None:
        """Return the boolean mask of the batch, or None if all count."""
        return token_mask(batch, self.labels or self.mask)

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return how many positions count, as a float64 scalar."""
        mask = self.mask_of(batch)
        if mask is not None:
            return mask.sum(dtype=torch.float64)
        if self.rows is not None and self.rows in batch:
            return (batch[self.rows] != 0).sum(dtype=torch.float64)
        first = next(v for v in batch.values() if isinstance(v, torch.Tensor))
        return torch.tensor(first.shape[0], dtype=torch.float64, device=first.device)
