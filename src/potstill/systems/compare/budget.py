"""Budgets: optimiser steps, or minutes that a measured step turns into steps."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from transformers import TrainerCallback

from potstill.errors import InputError
from potstill.recipe import Recipe
from potstill.run.prepare import Teachers, prepare
from potstill.systems.compare.methods import with_steps

WARM_UP, TIMED = 5, 20
_LARGEST = {"steps": 100_000_000, "minutes": 60 * 24 * 365}


@dataclass(frozen=True)
class Budget:
    """What every run of a comparison may spend on training.

    Attributes:
        kind: "steps" or "minutes".
        amount: How many.
    """

    kind: str
    amount: float

    @property
    def name(self) -> str:
        """Its name in tables and folders: ``steps-400``."""
        return f"{self.kind}-{self.amount:g}" if self.kind == "minutes" else f"steps-{int(self.amount)}"


def parse_budgets(text: str) -> list[Budget]:
    """Read ``steps=400,800`` or ``minutes=2``.

    Raises:
        InputError: It is none of the two.
    """
    kind, _, amounts = text.partition("=")
    expected = "steps=400, steps=400,800 or minutes=2"
    if kind not in _LARGEST:
        raise InputError("does not fit", where="--budget", expected=expected, got=text)
    found = []
    for word in amounts.split(","):
        try:
            amount = float(word) if kind == "minutes" else int(word)
        except ValueError:
            raise InputError("does not fit", where="--budget", expected=expected, got=text) from None
        if not (math.isfinite(amount) and 0 < amount <= _LARGEST[kind]):
            raise InputError("out of range", where="--budget", expected=f"{kind} above 0", got=word)
        found.append(Budget(kind, amount))
    if len({b.name for b in found}) < len(found):
        raise InputError("names an amount twice", where="--budget", got=text)
    return found


def seconds_per_step(recipe: Recipe, clock: Callable[[], float] = time.perf_counter) -> float:
    """Train some steps in this process, write nothing that stays, and return how long one takes.

    The median of 20 steps after 5 for warming up. Of a method with several stages the mean over its steps: each stage
    is measured for itself. What a run does once (loading, a survey, measuring at the end) is not in it.
    """
    shares = [stage.train.steps for _, stage in recipe.staged()]
    short = recipe.model_dump()
    short["train"] |= {"steps": WARM_UP + TIMED, "checkpoint_every": 10**6, "warmup_steps": 0}
    for stage in short["stages"] or ():
        stage["train"] = {**(stage["train"] or {}), "steps": WARM_UP + TIMED}
    seconds, student, teachers = [], None, Teachers()
    with tempfile.TemporaryDirectory(prefix="potstill-timing-") as folder:
        for i, (name, stage) in enumerate(Recipe.model_validate(short).staged()):
            watch = _Watch(clock)
            built = prepare(
                stage,
                Path(folder) / str(i),
                student=student,
                teachers=teachers.get(stage),
                stage=name,
                callbacks=[watch],
            )
            built.trainer.train()
            built.close()
            student = built.trainer.whole_student()
            teachers.keep(built)
            seconds.append(watch.seconds)
    return sum(s * n for s, n in zip(seconds, shares)) / sum(shares)


class _Watch(TrainerCallback):
    """Notes when every step ends."""

    def __init__(self, clock: Callable[[], float]):
        self._clock, self._ends = clock, []

    def on_step_end(self, args, state, control, **kwargs):
        self._ends.append(self._clock())

    @property
    def seconds(self) -> float:
        ends = self._ends[WARM_UP - 1 :]
        return statistics.median(b - a for a, b in pairwise(ends))


def steps_in(minutes: float, seconds: float) -> int:
    """Return how many steps fit into the time, at least one."""
    return max(1, int(minutes * 60 / seconds))


def with_budget(recipe: Recipe, budget: Budget, seconds: float | None) -> Recipe:
    """Return the recipe with the steps of a budget; ``seconds`` is what a step takes, where the budget is time."""
    return with_steps(recipe, int(budget.amount) if budget.kind == "steps" else steps_in(budget.amount, seconds))
