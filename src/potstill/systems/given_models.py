"""A recipe carried out with models that are at hand in Python."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from potstill.data.sources import DataSource
from potstill.recipe import load_recipe
from potstill.recipe.schema import GIVEN as GIVEN
from potstill.run.prepare import Prepared, prepare, with_source


class GivenModels:
    """What systems share that take their student and teachers as models: a recipe, and the way to train by it.

    A subclass says in ``recipe`` what its sections are. To train from files, to checkpoint and to resume, write the
    recipe down and use ``potstill.distill``.

    Args:
        student: The model to train.
        teachers: Models that teach, by the names that the recipe uses for them.
    """

    def __init__(self, student: nn.Module, teachers: Mapping[str, nn.Module]):
        self.student, self.teachers = student, dict(teachers)

    def recipe(self) -> dict[str, Any]:
        """Return teacher, teachers, objectives and selection as a recipe has them."""
        raise NotImplementedError(f"{type(self).__name__} must have a recipe")

    def prepare(
        self, source: DataSource, folder: str | Path, *, train: Mapping[str, Any] | None = None, seed: int = 0
    ) -> Prepared:
        """Build all of a run without starting it.

        Args:
            source: The data.
            folder: Where checkpoints go.
            train: The ``train`` section of a recipe.
            seed: Of everything random.

        Raises:
            PotstillError: What does not fit, placed as in a recipe.
        """
        rest = {"version": 1, "seed": seed, "train": dict(train or {})}
        models = {"student": {"builder": "pretrained", "model": GIVEN}, **self.recipe()}
        recipe = with_source(load_recipe({**rest, **models}), source)
        return prepare(recipe, Path(folder), source=source, student=self.student, teachers=self.teachers)

    def train(
        self,
        source: DataSource,
        *,
        folder: str | Path | None = None,
        train: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> nn.Module:
        """Train the student, and return it with nothing of the training left on it.

        Args:
            source: The data.
            folder: Where checkpoints go; None = nowhere that stays.
            train: The ``train`` section of a recipe.
            seed: Of everything random.
        """
        with tempfile.TemporaryDirectory(prefix="potstill-") as passing:
            built = self.prepare(source, folder or passing, train=train, seed=seed)
            try:
                built.trainer.train()
                return self.finished(built.trainer.whole_student().requires_grad_(True).eval())
            finally:
                built.close()

    def finished(self, student: nn.Module) -> nn.Module:
        """Return the trained student as it is to be used."""
        return student
