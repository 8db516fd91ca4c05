"""From the objectives of a recipe to the terms of the loss."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

import potstill.losses as losses
from potstill.align.projectors import PROJECTORS
from potstill.errors import PotstillError, RecipeError, suggest
from potstill.models.families import family_of
from potstill.models.pairing import DistilledModule
from potstill.objectives import OBJECTIVES, HiddenObjective, Objective, OutputObjective, Where
from potstill.objectives.base import TEACHER, check_output, is_tap
from potstill.recipe import Recipe
from potstill.recipe.options import call_with_options
from potstill.recipe.schema import ObjectiveSection
from potstill.run.build import build_modules
from potstill.run.check import FIELDS, reads_teacher
from potstill.run.maps import attention_objectives, chosen_modules, map_losses
from potstill.taps import expand_paths


def build_objectives(
    recipe: Recipe,
    student: nn.Module,
    modules: Sequence[DistilledModule],
    batch: Mapping[str, Any],
    teachers: Mapping[str, nn.Module],
) -> dict[str, list[Objective]]:
    """Return the terms of the loss by the recipe path of their section; "hidden" makes one for every module.

    ``modules`` are those of the recipe's own teacher. ``batch`` is any batch of the source: masks and labels that it
    lacks are refused here, and taps of modules that student or teacher lacks.
    """
    built: dict[str, list[Objective]] = {}
    for i, section in enumerate(recipe.objectives):
        where = f"objectives[{i}]"
        for field in ("labels", "mask"):
            key = getattr(section, field)
            if key is not None and key not in batch:
                hint = suggest(key, [str(k) for k in batch])
                raise RecipeError(f'the batch has no "{key}"', where=f"{where}.{field}", hint=hint)
        if section.tap is not None:
            expand_paths(student, [section.tap], where=f"{where}.tap", owner="student")
        of = tuple(section.teachers or (section.teacher or TEACHER,))
        for name in of if reads_teacher(section.loss) else ():
            _check_outputs(section, student, teachers[name], where)
        teacher = teachers.get(of[0])
        own = modules if of[0] == TEACHER else build_modules(recipe, student, teacher)
        built[where] = _objectives_of(section, own, student, teacher, where)
        for objective in built[where]:
            objective.of, objective.learning_rate = of, section.learning_rate
            objective.balanced = section.weight == "gradmag"
            if section.weight == "auto":
                objective.alpha, objective.against = section.name or section.loss, tuple(section.against or ())
            try:
                objective.meet(student, teachers)
            except PotstillError as error:
                inner = (error.where or "").removeprefix(objective.name).strip(".")
                error.where = f"{where}.{inner}" if inner else where
                raise
    return built


def _check_outputs(section: ObjectiveSection, student: nn.Module, teacher: nn.Module, where: str) -> None:
    """Refuse taps that are none of one module that is there, and logits of models known to return none."""
    sides = (
        (student, section.on, f"{where}.on", "student"),
        (
            teacher,
            section.teacher_on or section.on,
            f"{where}.teacher_on" if section.teacher_on else f"{where}.on",
            "teacher",
        ),
    )
    for model, name, place, owner in sides:
        if name is None:
            continue
        if is_tap(name):
            check_output(name, place)
            expand_paths(model, [name], where=place, owner=owner)
        elif name == "logits" and (family := family_of(model)) is not None and family.prediction is not None:
            raise RecipeError(
                f"{type(model).__name__} returns no logits",
                where=place,
                expected=f'a tap on them: "{family.prediction}"',
            )


def _objectives_of(
    section: ObjectiveSection,
    modules: Sequence[DistilledModule],
    student: nn.Module,
    teacher: nn.Module | None,
    where: str,
) -> list[Objective]:
    weight = 1.0 if isinstance(section.weight, str) else section.weight
    if section.loss == "hidden":
        return _hidden(section, modules, weight, where)
    if section.loss in map_losses():
        return attention_objectives(section, modules, student, teacher, weight, where)
    output = None if section.on is None else section.on.partition("@")[0].rpartition(".")[2]
    if section.loss in OBJECTIVES:
        target = OBJECTIVES.get(section.loss)
        parameters = inspect.signature(target).parameters
        given = {f: getattr(section, f) for f in FIELDS if f in parameters and getattr(section, f) is not None}
        # One that has to be told its output is named after it.
        is_of_output = "on" in parameters and parameters["on"].default is inspect.Parameter.empty
        name = section.name or (output if is_of_output else section.loss)
        options = {**section.options, **given}
        return [call_with_options(target, options, where, name, given=("name",), weight=weight)]
    return [
        OutputObjective(
            section.name or output,
            getattr(losses, section.loss),
            section.on,
            teacher_on=section.teacher_on,
            where=Where(mask=section.mask, labels=section.labels),
            shift=section.shift,
            options=section.options,
            weight=weight,
        )
    ]


def _hidden(
    section: ObjectiveSection, modules: Sequence[DistilledModule], weight: float, where: str
) -> list[Objective]:
    chosen = chosen_modules(section, modules, where)
    kinds = ["auto", "none", *PROJECTORS]
    if section.projector not in kinds:
        hint = suggest(section.projector, kinds)
        raise RecipeError(f'unknown projector "{section.projector}"', where=f"{where}.projector", hint=hint)
    prefix = section.name or "hidden"
    return [
        HiddenObjective(
            f"{prefix}.{m.name}",
            m.pairs,
            module=m.name,
            where=Where(mask=m.mask, rows=m.rows),
            projector=section.projector,
            weight=weight,
        )
        for m in chosen
    ]
