"""What can be refused before or right after loading: unknown names and options, data that does not fit a model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

import potstill.losses as losses
from potstill.data.selection import SELECTIONS
from potstill.data.sources import DataSource
from potstill.errors import PotstillError, RecipeError, suggest
from potstill.objectives import OBJECTIVES
from potstill.objectives.base import TEACHER
from potstill.policies import POLICIES
from potstill.recipe import Recipe
from potstill.recipe.schema import ObjectiveSection
from potstill.run.maps import map_losses
from potstill.students import STUDENTS

FIELDS = (
    *("on", "teacher_on", "labels", "mask", "shift", "modules", "projector", "attention", "layers", "pairs"),
    *("resize", "tap"),
)
"""Fields of an objective's section that the objectives of ``OBJECTIVES`` may take by the same name."""
NOT_OPEN = ("name", "weight", "module", "alpha", "against")
MAPS_FILLED_IN = (
    *("student_attn", "teacher_attn", "query_mask", "key_mask", "reduction"),
    *("projection", "teacher_values"),  # a part of the objective; not tapped
)
_FILLED_IN = ("student", "teacher", "mask", "reduction", "target")


def reads_teacher(loss: str) -> bool:
    """Return whether a loss compares with a teacher."""
    return loss not in OBJECTIVES or OBJECTIVES.get(loss).role != "task"


def usable_losses() -> list[str]:
    """Return the losses an objective can name: those that compare one output of the student with the teacher's."""
    found = []
    for name in losses.__all__:
        parameters = inspect.signature(getattr(losses, name)).parameters
        given = [p for p in parameters.values() if p.default is p.empty]
        # What else a loss has to be given stands in the recipe: the labels, or a number (R of minilm_relation).
        rest = [p for p in given[2:] if p.name != "target" and p.annotation not in ("int", "float")]
        if [p.name for p in given[:2]] == ["student", "teacher"] and not rest and "mask" in parameters:
            found.append(name)
    return found


def check_names(recipe: Recipe) -> None:
    """Refuse unknown losses, policies, builders and options, and fields that are missing; nothing is loaded.

    Raises:
        RecipeError: With the path of the field.
    """
    for i, section in enumerate(recipe.objectives):
        _check_objective(section, f"objectives[{i}]")
        _check_teachers(section, recipe, f"objectives[{i}]")
    if recipe.selection is not None:
        policy = SELECTIONS.get(recipe.selection.name, "selection.name")
        known = set(inspect.signature(policy).parameters) - {"seed", "domains"}  # the run's
        _check_options(recipe.selection.options, known, "selection")
    if recipe.policy is not None:
        policy = POLICIES.get(recipe.policy.name, "policy.name")
        known = set(inspect.signature(policy).parameters) - {"arms", "seed"}
        _check_options(recipe.policy.options, known | set(type(recipe.policy).model_fields), "policy")
        if not any(o.loss == "hidden" or (o.loss in map_losses() and o.pairs is None) for o in recipe.objectives):
            raise RecipeError(
                "there is no module to choose among",
                where="policy",
                hint='Add an objective with loss: "hidden", or a loss of attention maps.',
            )
    builder = STUDENTS.get(recipe.student.builder, "student.builder")
    known = set(list(inspect.signature(builder).parameters)[1:]) - {"data_fields"}
    _check_options(recipe.student.options, known, "student")
    if recipe.teacher is None and recipe.student.builder in ("depth", "width", "config"):
        raise RecipeError(
            f'the builder "{recipe.student.builder}" makes a student from the teacher, but there is none',
            where="student.builder",
            hint='Name a teacher, or use builder: "new".',
        )


def _check_teachers(section: ObjectiveSection, recipe: Recipe, where: str) -> None:
    if section.teacher is not None and section.teachers is not None:
        raise RecipeError('is given beside "teacher"', where=f"{where}.teachers", hint="Give one of the two.")
    named = section.teachers or ([section.teacher] if section.teacher is not None else [])
    known = [*recipe.teachers, *([TEACHER] if recipe.teacher is not None else [])]
    field = "teachers" if section.teachers else "teacher"
    for name in named:
        if not reads_teacher(section.loss):
            raise RecipeError(f'"{section.loss}" trains on labels and reads no teacher', where=f"{where}.{field}")
        if name not in known:
            raise RecipeError(f'unknown teacher "{name}"', where=f"{where}.{field}", hint=suggest(name, known))
    if len(set(named)) < len(named):
        raise RecipeError("names a teacher twice", where=f"{where}.{field}")
    if not named and recipe.teacher is None and reads_teacher(section.loss):
        raise RecipeError(
            f'"{section.loss}" compares with a teacher, but the recipe names none',
            where=f"{where}.loss",
            hint='Give teacher: {model: ...}, or train on labels: "cross_entropy", "model_loss".',
        )


def _check_objective(section: ObjectiveSection, where: str) -> None:
    name = section.loss
    if name in OBJECTIVES:
        parameters = inspect.signature(OBJECTIVES.get(name)).parameters
        needed = [n for n, p in parameters.items() if p.default is p.empty and n not in NOT_OPEN]
        options = set(parameters) - set(FIELDS) - set(NOT_OPEN)
    elif name == "hidden":
        needed, options = (), set()
    elif name in map_losses():
        needed = ()
        options = set(inspect.signature(getattr(losses, name)).parameters) - set(MAPS_FILLED_IN)
    else:
        known = [*usable_losses(), *map_losses(), *OBJECTIVES, "hidden"]
        if name not in known:
            raise RecipeError(f'unknown loss "{name}"', where=f"{where}.loss", hint=suggest(name, known))
        parameters = inspect.signature(getattr(losses, name)).parameters
        needed = ("on", "labels") if "target" in parameters else ("on",)
        options = set(parameters) - set(_FILLED_IN)
    for field in needed:
        if (getattr(section, field) if field in FIELDS else section.options.get(field)) is None:
            raise RecipeError(f'is missing: the loss "{name}" needs it', where=f"{where}.{field}")
    for field in FIELDS if name in OBJECTIVES else ():
        if field not in parameters and getattr(section, field) != type(section).model_fields[field].default:
            raise RecipeError(f'the loss "{name}" does not take it', where=f"{where}.{field}")
    for key in section.options:
        if key not in options:
            hint = suggest(key, options | set(type(section).model_fields))
            raise RecipeError(f'the loss "{name}" has no such option', where=f"{where}.{key}", hint=hint)
    if name not in OBJECTIVES and name != "hidden":
        parameters = inspect.signature(getattr(losses, name)).parameters
        for key in options:
            if parameters[key].default is inspect.Parameter.empty and key not in section.options:
                raise RecipeError(f'is missing: the loss "{name}" needs it', where=f"{where}.{key}")


def _check_options(options: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in options:
        if key not in known:
            raise RecipeError("there is no such option", where=f"{where}.{key}", hint=suggest(key, known))


def check_splits(recipe: Recipe, source: DataSource) -> None:
    """Refuse a split that does not exist or holds nothing, before hours of training and not after."""
    section = recipe.evaluate
    rows = len(source.split("train"))
    if rows < recipe.train.batch_size:
        raise RecipeError(
            "there are fewer training samples than one batch holds",
            where="train.batch_size",
            expected=f"at most {rows}",
            got=recipe.train.batch_size,
        )
    asked = [("evaluate.split", section.split)] + [(f"evaluate.splits[{i}]", s) for i, s in enumerate(section.splits)]
    for where, name in asked:
        try:
            data = source.split(name, section.samples)
        except PotstillError as error:
            error.where = where
            raise
        if len(data) == 0:
            raise RecipeError(f'the split "{name}" holds no sample', where=where)


def check_fit(model: nn.Module, role: str, source: DataSource) -> None:
    """Refuse a model that was made for other data: smaller vocabulary, other classes, other pictures.

    Raises:
        RecipeError: At ``teacher`` or ``student``, naming the field.
    """
    config = getattr(model, "config", None)
    if config is None:
        return
    sections = [config] + [s for k in ("text_config", "vision_config") if (s := getattr(config, k, None)) is not None]
    is_classifier = "Classification" in type(model).__name__
    fields = source.model_fields
    if role != "student" and source.teacher_fields is not None:
        fields = source.teacher_fields
    # A BLIP begins to write with its own first token, whatever the tokenizer's is.
    writes_from_it = getattr(config, "model_type", None) == "blip"
    for field, wanted in fields.items():
        has = next((v for s in sections if (v := getattr(s, field, None)) is not None), None)
        if has is None:
            continue
        if field == "task_labels":
            for task in has:
                if task in wanted and list(has[task]) != list(wanted[task]):
                    raise _other_data(role, f"{field}.{task}", wanted[task], has[task])
        elif (
            (field == "vocab_size" and has < wanted)
            or (field == "bos_token_id" and writes_from_it and has != wanted)
            or (field in ("image_size", "num_channels") and has != wanted)
            or (field == "num_labels" and is_classifier and has < wanted)
        ):
            raise _other_data(role, field, wanted, has)
    longest = source.facts.get("max_tokens")
    room = next((n for s in sections if (n := getattr(s, "max_position_embeddings", None)) is not None), None)
    if longest is not None and room is not None and room < longest:
        raise RecipeError(
            f"the {role} cannot read texts of that length",
            where="data.max_tokens",
            expected=f"at most {room}",
            got=longest,
        )


def _other_data(role: str, field: str, wanted: Any, has: Any) -> RecipeError:
    def short(value: Any) -> str:
        return f"{len(value)} classes, {value[0]} … {value[-1]}" if isinstance(value, list | tuple) else str(value)

    return RecipeError(
        f"the {role} was made for other data: its {field} does not fit",
        where=role if role == "student" else "teacher.model",
        expected=f"{short(wanted)}, as the data has",
        got=short(has),
        hint=f"Choose data options that the {role} was trained with, or another {role}.",
    )
