"""Pairing the modules of a student with those of its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from potstill.align.layers import layer_map, parse_layer_map
from potstill.errors import RecipeError, ShapeError, suggest
from potstill.models.families import family_of
from potstill.models.family_spec import Family
from potstill.models.paths import block_lists, expand_path

_KEYS = ("student", "teacher", "map", "mask")


@dataclass(frozen=True)
class DistilledModule:
    """A module that is distilled: student layers and the teacher layers they imitate.

    Attributes:
        name: The module's name, as policies and reports use it.
        student_blocks: Paths of student layers, one for each pair.
        teacher_blocks: Paths of teacher layers; entry i is imitated by entry i of ``student_blocks``.
        rows: Key of the batch with the mask of the module's rows; None = the batch's own rows.
        mask: Key of the batch with the token mask, as ``potstill.align.masks.token_mask`` reads it; None = all count.
    """

    name: str
    student_blocks: list[str]
    teacher_blocks: list[str]
    mask: str | None = None
    rows: str | None = None

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """``(student path, teacher path)`` of every pair."""
        return list(zip(self.student_blocks, self.teacher_blocks))


def resolve_modules(
    student: nn.Module,
    teacher: nn.Module,
    spec: Mapping[str, Any] | None = None,
    where: str = "modules",
) -> list[DistilledModule]:
    """Find the modules to distil, and which student layer imitates which teacher layer in each.

    Args:
        student: The student.
        teacher: The teacher.
        spec: None takes the modules that the families of both models have in common. Else
            ``{name: {student: path, teacher: path, map: [[0, 1], ...], mask: key}}``: only the named modules are
            used, in this order. A path may be a list of blocks, a single layer, or a pattern. What is left out comes
            from the families where they have a module of that name; a ``map`` left out is spaced evenly;
            ``mask: null`` says that every token counts.
        where: Recipe path of the field, for messages.

    Returns:
        At least one module; every one with as many student as teacher paths.

    Raises:
        RecipeError: if nothing can be paired, a path or key is unknown, or a map leaves the range.
        ShapeError: if a module has more student than teacher layers and no map is given.
    """
    families = {"student": family_of(student), "teacher": family_of(teacher)}
    if spec is None:
        names = _common_names(families)
        if not names:
            raise _nothing_in_common(student, teacher, families, where)
        spec = {name: {} for name in names}
    if not isinstance(spec, Mapping) or not spec:
        raise RecipeError(
            "no module is named", where=where, expected="{name: {student: path, teacher: path}}", got=spec
        )

    resolved = []
    for name, entry in spec.items():
        here = f"{where}.{name}"
        entry = _entry(entry, here)
        paths = {}
        for side, model in (("student", student), ("teacher", teacher)):
            path = entry.get(side) or _family_path(families[side], name)
            if path is None:
                raise RecipeError(
                    f'no path is given, and "{name}" is no module that Potstill knows in {type(model).__name__}',
                    where=f"{here}.{side}",
                    hint=suggest(name, [m.name for m in families[side].modules] if families[side] else []),
                )
            paths[side] = expand_path(model, path, side=side, where=f"{here}.{side}")
        n_s, n_t = len(paths["student"]), len(paths["teacher"])
        if entry.get("map") is not None:
            pairs = parse_layer_map(entry["map"], n_s, n_t, f"{here}.map")
        else:
            try:
                pairs = layer_map(n_s, n_t)
            except ShapeError as error:
                raise error.at(here) from None
        resolved.append(
            DistilledModule(
                name,
                [paths["student"][i] for i, _ in pairs],
                [paths["teacher"][j] for _, j in pairs],
                entry["mask"] if "mask" in entry else _from_family(families, name, "mask"),
                _from_family(families, name, "rows"),
            )
        )
    return resolved


def _entry(entry: Any, where: str) -> dict[str, Any]:
    if entry is None:
        return {}
    if hasattr(entry, "model_dump"):  # a pydantic section of a recipe; what the user left out stays out
        entry = entry.model_dump(exclude_unset=True)
    if not isinstance(entry, Mapping):
        raise RecipeError("not a module", where=where, expected=f"the fields {', '.join(_KEYS)}", got=entry)
    for key in entry:
        if key not in _KEYS:
            raise RecipeError(f'unknown field "{key}"', where=f"{where}.{key}", hint=suggest(str(key), _KEYS))
    for key in ("student", "teacher", "mask"):
        if entry.get(key) is not None and not isinstance(entry[key], str):
            raise RecipeError("not a path", where=f"{where}.{key}", expected="text", got=entry[key])
    return dict(entry)


def _common_names(families: Mapping[str, Family | None]) -> list[str]:
    if families["student"] is None or families["teacher"] is None:
        return []
    return [m.name for m in families["teacher"].modules if families["student"].module(m.name)]


def _family_path(family: Family | None, name: str) -> str | None:
    module = family.module(name) if family else None
    return module.blocks if module else None


def _from_family(families: Mapping[str, Family | None], name: str, field: str) -> str | None:
    """What the student's family says: its layers decide which tokens there are; else what the teacher's says."""
    for family in (families["student"], families["teacher"]):
        if family is not None and family.module(name) is not None:
            return getattr(family.module(name), field)
    return None


def _nothing_in_common(
    student: nn.Module, teacher: nn.Module, families: Mapping[str, Family | None], where: str
) -> RecipeError:
    def describe(model: nn.Module, family: Family | None) -> str:
        if family is not None:
            return f"{type(model).__name__} has {', '.join(m.name for m in family.modules)}"
        return (
            f"{type(model).__name__} is of no known family; its block lists: {', '.join(block_lists(model)) or 'none'}"
        )

    return RecipeError(
        f"the modules cannot be paired by name: the student {describe(student, families['student'])}; "
        f"the teacher {describe(teacher, families['teacher'])}",
        where=where,
        hint='Name them by path: modules: {my_module: {student: path, teacher: path}}. "potstill inspect" lists paths.',
    )
