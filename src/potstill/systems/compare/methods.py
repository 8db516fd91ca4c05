"""What a method does to a recipe: another loss, no teacher, or the objectives of another recipe."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import potstill.losses as losses
from potstill.data.sources import DATA
from potstill.errors import InputError, PotstillError, RecipeError, suggest
from potstill.objectives import OBJECTIVES
from potstill.recipe import Recipe, load_recipe, packaged_recipes
from potstill.recipe.load import validate
from potstill.run.check import check_names, reads_teacher, usable_losses
from potstill.systems.catalogue import CATALOGUE

LABELS = "labels"
KEPT = ("name", "weight", "against", "on", "teacher_on", "teacher", "teachers", "labels", "mask", "shift")
"""Fields of an objective that stay when another loss takes its place."""


@dataclass(frozen=True)
class Method:
    """A method of a comparison.

    Attributes:
        name: What tables and folders call it.
        kind: "loss" (takes the place of a loss), "labels" (no teacher), or "recipe" (its objectives are laid over).
        source: The loss, or the recipe's name or file.
    """

    name: str
    kind: Literal["loss", "labels", "recipe"]
    source: str


def find_method(word: str) -> Method:
    """Return the method a word names: a loss, "labels", a row of the catalogue, a packaged recipe, or a YAML file.

    Raises:
        InputError: Nothing has this name, or it is a loss that needs more than an output and labels.
    """
    losses_there = drop_in_losses()
    if word in losses_there:
        return Method(word, "loss", word)
    if word == LABELS:
        return Method(word, LABELS, LABELS)
    rows = {row.name: row.recipe for row in CATALOGUE if row.recipe}
    recipes = packaged_recipes()
    if word in rows or word in recipes:
        return _named(word, rows.get(word, word))
    if word.endswith((".yaml", ".yml")) and Path(word).is_file():
        return _named(Path(word).stem, word)
    if missing := _missing_of(word):
        hint = "Write a YAML recipe with that objective, and name the file as the method."
        raise InputError(f'the loss "{word}" also needs "{missing}"', where="--methods", hint=hint)
    known = [*losses_there, LABELS, *rows, *recipes]
    raise InputError(f'unknown method "{word}"', where="--methods", hint=suggest(word, known))


def _named(name: str, source: str) -> Method:
    check_file_name(name, "--methods")
    return Method(name, "recipe", source)


def check_file_name(name: str, where: str) -> None:
    """Refuse a name that no folder should have."""
    if not re.fullmatch(r"\w[\w. +-]*", name):
        raise InputError("is no name for a folder", where=where, expected="letters, digits, . _ + -", got=name)


def drop_in_losses() -> list[str]:
    """Return the losses that need no more than one output of student and teacher, and labels."""
    named = dict.fromkeys([*usable_losses(), *(n for n in OBJECTIVES if compares_outputs(n))])
    return sorted(name for name in named if _missing_of(name) is None)


def compares_outputs(loss: str) -> bool:
    """Return whether a loss compares an output with the teacher's, so that another such loss could stand there."""
    if loss in OBJECTIVES:
        target = OBJECTIVES.get(loss)
        return target.role == "prediction" and "on" in inspect.signature(target).parameters
    return loss in usable_losses()


def _missing_of(loss: str) -> str | None:
    """Return what a loss has to be given beyond an output and labels, or None."""
    if loss not in OBJECTIVES and loss not in usable_losses():
        return None
    if loss in OBJECTIVES and not compares_outputs(loss):
        return "an output to compare"
    filled = ("student", "teacher", "target", "name", "weight", "on", "labels")
    return next((n for n, p in _parameters(loss).items() if p.default is p.empty and n not in filled), None)


def _parameters(loss: str) -> dict[str, inspect.Parameter]:
    target = OBJECTIVES.get(loss) if loss in OBJECTIVES else getattr(losses, loss)
    return dict(inspect.signature(target).parameters)


def apply_method(method: Method, base: Recipe) -> Recipe:
    """Return the recipe with the method in it, its names checked; student, data, train and evaluate stay.

    Raises:
        PotstillError: The method does not go with the recipe; names both and the field.
    """
    where = f"{method.name} on {base.name}"
    try:
        if base.stages:
            raise RecipeError("has several stages", where="stages", hint="Compare on a recipe that has one.")
        build = {"loss": _with_loss, LABELS: _with_labels, "recipe": _with_recipe}[method.kind]
        recipe = validate({**build(method, base), "name": base.name})
        DATA.get(recipe.data.source, "data.source")
        for _, stage in recipe.staged():
            check_names(stage)
    except PotstillError as error:
        error.where = f"{where}: {error.where}" if error.where else where
        raise
    return recipe


def _with_loss(method: Method, base: Recipe) -> dict[str, Any]:
    data, loss = base.model_dump(), method.source
    places = [i for i, section in enumerate(base.objectives) if compares_outputs(section.loss)]
    if not places:
        raise RecipeError(
            "no objective compares an output with the teacher's, so there is no loss to take the place of",
            where="objectives",
        )
    parameters = _parameters(loss)
    needs_labels = "target" in parameters or (
        "labels" in parameters and parameters["labels"].default is inspect.Parameter.empty
    )
    for i in places:
        section, old = base.objectives[i], data["objectives"][i]
        if section.loss == loss:  # in its own place it stays as it is, options and all
            continue
        new = {"loss": loss, **{field: old[field] for field in KEPT}}
        if loss in OBJECTIVES and "labels" not in parameters:
            new["labels"] = None
        elif needs_labels and new["labels"] is None:
            new["labels"] = _labels_for(section.on, base, f"objectives[{i}].labels")
        data["objectives"][i] = new
    return data


def _labels_for(on: str | None, base: Recipe, where: str) -> str:
    """Return the batch key of the labels that the recipe trains an output on."""
    tasks = [s for s in base.objectives if not reads_teacher(s.loss) and s.labels is not None]
    same = {s.labels for s in tasks if s.on == on} or {s.labels for s in tasks if s.on is not None}
    if len(same) != 1:
        raise RecipeError(
            f'the labels of "{on}" are not known: the recipe has no label objective on it',
            where=where,
            got=sorted(same),
            hint="Name them in the recipe, in the field labels of this objective.",
        )
    return same.pop()


def _with_labels(method: Method, base: Recipe) -> dict[str, Any]:
    data = base.model_dump()
    kept = [row for row in data["objectives"] if not reads_teacher(row["loss"])]
    if not kept:
        for i, section in enumerate(base.objectives):
            if compares_outputs(section.loss):
                labels = section.labels or _labels_for(section.on, base, f"objectives[{i}].labels")
                given = {"on": section.on, "labels": labels, "shift": section.shift, "name": section.name}
                kept.append({"loss": "cross_entropy", **given})
    if not kept:
        raise RecipeError("no objective has labels", where="objectives")
    # The teacher stays to make the student from and to be compared with; what no objective reads is not run.
    return {**data, "objectives": kept, "policy": None}


def _with_recipe(method: Method, base: Recipe) -> dict[str, Any]:
    data, other = base.model_dump(), load_recipe(method.source).model_dump()
    data |= {key: other[key] for key in ("objectives", "policy", "selection", "rollout")}
    # Who teaches is the base's affair, where it says it.
    data["teacher"] = data["teacher"] or other["teacher"]
    data["teachers"] = {**other["teachers"], **data["teachers"]}
    if other["student"] and "of" in other["student"]:  # a builder around another: around the base's student
        data["student"] = {**other["student"], "of": data["student"]}
    if other["stages"]:
        # Its own steps are kept as shares of the budget.
        data["stages"] = [
            {**stage, "data": None, "train": {"steps": (stage["train"] or {}).get("steps", other["train"]["steps"])}}
            for stage in other["stages"]
        ]
    return data


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """Return the recipe with so many steps; several stages share them in the proportion of their own."""
    data = recipe.model_dump()
    data["train"]["steps"] = steps
    if recipe.stages:
        own = [(stage.train or {}).get("steps", recipe.train.steps) for stage in recipe.stages]
        if steps < len(own):
            raise InputError("fewer steps than stages", where="--budget", expected=f"at least {len(own)}", got=steps)
        ends = [round(steps * sum(own[: i + 1]) / sum(own)) for i in range(len(own))]
        for i, stage in enumerate(data["stages"]):  # one step each at least
            ends[i] = min(max(ends[i], (ends[i - 1] if i else 0) + 1), steps - (len(own) - 1 - i))
            stage["train"] = {**(stage["train"] or {}), "steps": ends[i] - (ends[i - 1] if i else 0)}
    for _, stage in validate(data).staged():
        if stage.train.warmup_steps >= stage.train.steps:
            raise InputError(
                "the learning rate would only warm up",
                where="train.warmup_steps",
                expected=f"below {stage.train.steps} steps",
                got=stage.train.warmup_steps,
                hint="--set train.warmup_steps=0, or a larger budget.",
            )
    return validate(data)
