"""Turn what pydantic finds wrong into one placed message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from potstill.errors import RecipeError, suggest

M = TypeVar("M", bound=BaseModel)


def check(model: type[M], data: Any) -> M:
    """Return the validated section; the first mistake becomes a ``RecipeError`` at its path."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _placed(error, model, data) from None


def _placed(error: ValidationError, root: type[BaseModel], data: Any) -> RecipeError:
    found = _by_field(error, data)
    # A mistyped name often makes another one missing: the name is the mistake.
    where, rows = min(found.items(), key=lambda item: item[1][0]["type"] != "extra_forbidden")
    first = rows[0]
    more = f" ({len(found) - 1} more after it)" if len(found) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _fields_at(root, first["loc"][:-1])
        return RecipeError(f"there is no such field{more}", where=where, hint=suggest(str(first["loc"][-1]), known))
    if first["type"] == "missing":
        return RecipeError(f"is missing{more}", where=where, hint='"potstill config schema" lists all fields.')
    if first["type"] == "value_error":
        return RecipeError(f"{first['ctx']['error']}{more}", where=where, got=repr(first["input"]))
    expected = " or ".join(dict.fromkeys(_expected(row) for row in rows))
    return RecipeError(f"does not fit{more}", where=where, expected=expected, got=repr(first["input"]))


def _expected(row: Any) -> str:
    if row["type"] in ("model_type", "dict_type"):
        return "a section (a mapping of fields)"
    if row["type"] in ("too_short", "too_long"):
        return f"{row['msg'].partition(' should have ')[2].partition(' after')[0]}"
    if row["type"] == "string_pattern_mismatch":
        return f"text like {row['ctx']['pattern']}"
    return row["msg"].removeprefix("Input should be ")


def _by_field(error: ValidationError, data: Any) -> dict[str, list[Any]]:
    """Return the mistakes of each field by its path; a union reports one for every branch it tried."""
    found: dict[str, list[Any]] = {}
    for row in error.errors():
        found.setdefault(_path(row["loc"], data), []).append(row)
    # 'teacher: {modle: x}' is a section with a mistake, not a failed "none": the deeper report is the one to show.
    return {p: r for p, r in found.items() if not any(other.startswith((f"{p}.", f"{p}[")) for other in found)}


def _path(loc: Sequence[Any], data: Any) -> str:
    """Write a location as in a recipe, without the union branches that pydantic names in it."""
    text, here = "", data
    for i, step in enumerate(loc):
        last = i == len(loc) - 1
        if isinstance(step, int):
            text += f"[{step}]"
            here = here[step] if isinstance(here, Sequence) and not isinstance(here, str) and step < len(here) else None
        elif isinstance(here, Mapping) and (step in here or (last and _could_be_field(step))):
            text += f".{step}"
            here = here.get(step)
    return text.lstrip(".") or "recipe"


def _could_be_field(step: str) -> bool:
    # A missing field is not in the data; a branch of a union is "TeacherSection", "literal['none']" or "str".
    return step.isidentifier() and not step[:1].isupper() and step not in ("str", "int", "float", "bool")


def _fields_at(model: type[BaseModel], loc: Sequence[Any]) -> list[str]:
    for step in loc:
        if isinstance(step, str) and step in model.model_fields:
            inner = _section_in(model.model_fields[step].annotation)
            model = inner or model
    return sorted(model.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _section_in(inner)
        if found:
            return found
    return None
