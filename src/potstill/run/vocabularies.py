"""Does every model read the tokens it was made for, and may their token logits be compared?"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

import potstill.losses as losses
from potstill.align.vocabulary import check_vocabularies, tokenizer_hash
from potstill.data.sources import DataSource
from potstill.data.token_sets import has_tokenizer, load_tokenizer
from potstill.errors import RecipeError, ShapeError
from potstill.evaluate.batches import tokenizer_of
from potstill.objectives import Objective
from potstill.recipe import Recipe
from potstill.recipe.schema import STUDENT, ObjectiveSection, TeacherSection


def check_reading(
    source: DataSource, teachers: Mapping[str, nn.Module], sections: Mapping[str, tuple[str, TeacherSection]]
) -> None:
    """Refuse a teacher whose own tokenizer, which lies beside its weights, is not the one its ids are made with.

    Args:
        source: The data.
        teachers: Teachers by name.
        sections: Recipe path and section of each.

    Raises:
        RecipeError: At the teacher's ``model``, naming both tokenizers.
    """
    own, given = _tokenizers(source)
    for name, (where, section) in sections.items():
        if given is not None and section.model != STUDENT:
            _check_reading(teachers[name], given, where, is_second=given is not own)


def check_compared(
    recipe: Recipe,
    source: DataSource,
    student: nn.Module,
    teachers: Mapping[str, nn.Module],
    by_section: Mapping[str, Sequence[Objective]],
) -> None:
    """Refuse objectives that compare token by token what was read in other tokens; tell the others of both tokenizers.

    Args:
        recipe: The stage's recipe.
        source: Its data, whose tokenizer is the student's.
        student: The student.
        teachers: Teachers by name.
        by_section: Objectives by the path of their section.

    Raises:
        RecipeError: At the objective's ``loss`` or ``shared_vocab``.
    """
    own, other = _tokenizers(source)
    if own is None or other is None:
        return
    if other is not own and recipe.rollout is not None:
        raise RecipeError(
            "what the student writes would have to be read in the teacher's tokens too, which is not built",
            where="rollout",
            hint="Leave it out: learn from the texts of the data.",
        )
    differ = other is not own and tokenizer_hash(own) != tokenizer_hash(other)
    for (where, objectives), section in zip(by_section.items(), recipe.objectives):
        for objective in objectives:
            if not objective.reads_teacher:
                continue
            if objective.crosses_tokenizers:
                objective.read_tokenizers(own, other)
            elif differ:
                raise RecipeError(
                    f'"{section.loss}" compares token by token, but student and teacher read the text in other tokens',
                    where=f"{where}.loss",
                    expected="alm",
                    got=f"student {_name(own)}, teacher {_name(other)}",
                    hint="loss: alm compares what both read: chunks of the text.",
                )
            else:
                for teacher in objective.of:
                    _check_rows(section, student, teachers[teacher], own, where)


def _check_reading(teacher: nn.Module, given: Any, where: str, *, is_second: bool) -> None:
    # Where it was loaded from: a model made in Python has no such place, and the header of a cache binds its own.
    place = getattr(teacher, "name_or_path", None)
    if not place or not has_tokenizer(folder := Path(place)):
        return
    made_for = load_tokenizer(folder, where=f"{where}.model")
    rows = max(_rows(teacher) or 0, len(made_for), len(given))
    try:
        check_vocabularies(given, made_for, rows, rows)
    except ShapeError as error:
        hint = "Set data.teacher_tokenizer: teacher, and compare by loss: alm."
        raise RecipeError(
            f"the teacher would read ids of another tokenizer ({error.message})",
            where=f"{where}.model",
            expected=f"its own, {_name(made_for)}",
            got=_name(given),
            hint="Set data.teacher_tokenizer to the teacher's own." if is_second else hint,
        ) from error


def _check_rows(section: ObjectiveSection, student: nn.Module, teacher: nn.Module, tokenizer: Any, where: str) -> None:
    """Refuse output layers of different size that are compared whole: 151,936 rows and 152,064 of one tokenizer."""
    loss = getattr(losses, section.loss) if section.loss in losses.__all__ else None
    if loss is None or section.on != "logits" or "shared_vocab" not in inspect.signature(loss).parameters:
        return
    rows_s, rows_t = _rows(student), _rows(teacher)
    if rows_s is None or rows_t is None:
        return
    shared = min(rows_s, rows_t)
    if "shared_vocab" not in section.options and rows_s != rows_t:
        needed = max(tokenizer.get_vocab().values(), default=-1) + 1
        raise RecipeError(
            f"is missing: the output layers have different numbers of rows for one tokenizer of {needed:,} tokens",
            where=f"{where}.shared_vocab",
            expected=f"{shared}",
            got=f"student {rows_s:,} rows, teacher {rows_t:,}",
            hint=f"Set shared_vocab: {shared}; what lies behind is cut off on both sides.",
        )


def _rows(model: nn.Module) -> int | None:
    """Return the rows of a model's token output layer, or None if it writes no tokens."""
    get = getattr(model, "get_output_embeddings", None)
    try:
        layer = None if get is None else get()
    except (NotImplementedError, AttributeError):  # of models without one
        layer = None
    weight = getattr(layer, "weight", None)
    return None if weight is None or weight.ndim != 2 else weight.shape[0]


def _tokenizers(source: DataSource) -> tuple[Any | None, Any | None]:
    """Return what the student's and what the teachers' ids are made with."""
    return _tokenizer(source.collator, source.processor), _tokenizer(source.teacher_collator, source.processor)


def _tokenizer(collator: Any, processor: Any) -> Any | None:
    """Return the tokenizer that batches are made with, or None if there is none whose words can be seen."""
    for found in (tokenizer_of(collator), getattr(processor, "tokenizer", processor)):
        if callable(getattr(found, "get_vocab", None)):
            return found
    return None


def _name(tokenizer: Any) -> str:
    place = str(getattr(tokenizer, "name_or_path", "") or "").rpartition("/")[2]
    kind = type(getattr(getattr(tokenizer, "backend_tokenizer", tokenizer), "model", tokenizer)).__name__
    return f"{place + ', ' if place else ''}{kind} of {len(tokenizer.get_vocab()):,} tokens"
