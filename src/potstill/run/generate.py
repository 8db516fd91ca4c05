"""Let the teacher of a recipe answer the prompts of its data, for sequence-level distillation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from potstill.data.generation import SeqKDGenerator
from potstill.data.texts import TextCollator
from potstill.errors import RecipeError
from potstill.recipe import Recipe, load_recipe
from potstill.recipe.schema import STUDENT
from potstill.run.build import build_source, build_teacher
from potstill.run.check import check_fit


def generate(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    samples: int | None = None,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
    **decoding: Any,
) -> Path:
    """Write the teacher's texts for the training prompts of a recipe; its ``data.completions`` is not read.

    Args:
        recipe: Path, name of a packaged recipe, mapping or ``Recipe``; its data must be texts.
        out: The file; one that was begun is gone on with.
        overrides: ``"data.domains=[words]"``.
        samples: Only the first prompts; None = all.
        batch_size: Prompts at a time.
        progress: Called with (prompts done, prompts in all).
        decoding: ``max_new_tokens``, ``beams``, ``temperature``, ``top_k``, ``top_p`` of ``SeqKDGenerator``.

    Raises:
        RecipeError: The recipe names no teacher, or data without prompts.
        PotstillError: As ``SeqKDGenerator`` says.
    """
    recipe = load_recipe(recipe, overrides)
    if recipe.teacher is None or recipe.teacher.model == STUDENT:
        raise RecipeError("there is no teacher to write the texts", where="teacher")
    recipe.data = type(recipe.data)(**{k: v for k, v in recipe.data.model_dump().items() if k != "completions"})
    source = build_source(recipe)
    if not isinstance(source.collator, TextCollator):
        raise RecipeError("its samples have no prompt to answer", where="data.source", expected="texts")
    teacher = build_teacher(recipe.teacher, "teacher")
    check_fit(teacher, "teacher", source)
    teacher.to("cuda" if torch.cuda.is_available() else "cpu")
    writer = SeqKDGenerator(teacher, source.collator, seed=recipe.seed, **decoding)
    return writer.generate(source.split("train", samples), out, batch_size=batch_size, progress=progress)
