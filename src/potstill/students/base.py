"""Student builders: the registry, the record of what was copied, and the call by name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from potstill.errors import InputError, PotstillError, RecipeError, suggest
from potstill.registry import Registry


@dataclass
class StudentRecord:
    """How a student came to be.

    Attributes:
        builder: Name in ``STUDENTS``.
        arguments: What the builder was asked for.
        student_class, teacher_class: Class names.
        parameters, teacher_parameters: Numbers of parameters, shared ones counted once.
        layers: For each module, the teacher layer (from 0) that each student layer was copied from.
        copied: Tensors equal to the teacher's, by their name in the student.
        sliced: Tensors that are the leading part of the teacher's.
        fresh: Tensors with a random start.
    """

    builder: str
    arguments: dict[str, Any]
    student_class: str
    teacher_class: str | None
    parameters: int
    teacher_parameters: int | None
    layers: dict[str, list[int]] = field(default_factory=dict)
    copied: list[str] = field(default_factory=list)
    sliced: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain data for a plan; tensors are counted, only the fresh ones are named."""
        plain = dataclasses.asdict(self)
        return plain | {"copied": len(self.copied), "sliced": len(self.sliced)}


Builder = Callable[..., tuple[nn.Module, StudentRecord]]
STUDENTS: Registry[Builder] = Registry("student builder")


Finisher = Callable[[nn.Module], nn.Module]
_FINISHERS: list[Finisher] = []


def before_export(function: Finisher) -> Finisher:
    """Have a function called with every trained student before it is measured and exported.

    It puts back what a builder of its own file took apart for training, and leaves other students as they are.
    """
    _FINISHERS.append(function)
    return function


def finish_student(student: nn.Module) -> nn.Module:
    """Return a trained student as it is to be used; changed in place."""
    for function in _FINISHERS:
        student = function(student)
    return student


def build_student(
    name: str, teacher: nn.Module | None, arguments: Mapping[str, Any] | None = None, where: str = "student"
) -> tuple[nn.Module, StudentRecord]:
    """Build a student by the name of its builder, as a recipe does.

    Args:
        name: ``depth``, ``width``, ``config``, ``pretrained``, or what a plugin registered.
        teacher: The teacher; never changed. None only for builders that need none.
        arguments: Arguments of the builder.
        where: Recipe path, for messages.

    Returns:
        The student and the record of its making.

    Raises:
        RecipeError: if the builder or an argument is unknown, or a needed argument is missing.
        InputError: if the builder refuses a value; placed at its path in the recipe.
    """
    builder = STUDENTS.get(name, f"{where}.builder")
    arguments = dict(arguments or {})
    parameters = dict(list(inspect.signature(builder).parameters.items())[1:])  # the first is the teacher
    for key in arguments:
        if key not in parameters:
            raise RecipeError(f'student builder "{name}" has no argument "{key}"', where=f"{where}.{key}",
                              hint=suggest(str(key), parameters))  # fmt: skip
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in arguments:
            raise RecipeError(f'student builder "{name}" needs "{key}"', where=f"{where}.{key}")
    try:
        return builder(teacher, **arguments)
    except PotstillError as error:
        raise error.at(where) from error.__cause__


def build_inner(
    of: Any, teacher: nn.Module | None, data_fields: Mapping[str, Any] | None, seed: int
) -> tuple[nn.Module, StudentRecord]:
    """Build the student that a builder changes, by the other builder that its ``of`` names.

    Args:
        of: ``{builder: name, ...}``.
        teacher: The teacher; never changed.
        data_fields: Handed on, if the other builder takes them.
        seed: Handed on, unless ``of`` has its own.

    Raises:
        RecipeError: ``of`` names no builder, or its builder or an option is unknown.
    """
    if not isinstance(of, Mapping) or not isinstance(of.get("builder"), str):
        raise RecipeError("names no builder", where="of", expected="{builder: name, ...}", got=of)
    options = {key: value for key, value in of.items() if key != "builder"}
    declared = inspect.signature(STUDENTS.get(of["builder"], "of.builder")).parameters
    if "seed" in declared:
        options.setdefault("seed", seed)
    if "data_fields" in declared:
        options["data_fields"] = data_fields
    return build_student(of["builder"], teacher, options, where="of")


def require_teacher(teacher: object) -> None:
    """Refuse to derive a student from nothing."""
    if not isinstance(teacher, nn.Module):
        raise InputError(
            "this builder derives the student from a teacher",
            expected="a model",
            got=type(teacher).__name__,
            hint='Name a teacher, or use the builder "pretrained".',
        )


def count_parameters(model: nn.Module) -> int:
    """Number of parameters; a parameter that two modules share counts once."""
    return sum(p.numel() for p in model.parameters())
