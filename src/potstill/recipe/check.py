"""Turn what pydantic finds wrong into one placed message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from potstill.errors import RecipeError, suggest

M = TypeVar("M", bound=BaseModel)


def check(model: type[M], data: Any) -> M:
    """Return the validated section; the first mistake becomes a ``RecipeError`` at its path."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _placed(error, model) from None


def _placed(error: ValidationError, root: type[BaseModel]) -> RecipeError:
    first = error.errors()[0]
    where = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in first["loc"] if _is_field(s)).lstrip(".")
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _fields_at(root, first["loc"][:-1])
        return RecipeError(f"there is no such field{more}", where=where, hint=suggest(str(first["loc"][-1]), known))
    if first["type"] == "missing":
        return RecipeError(f"is missing{more}", where=where, hint="See: potstill config schema.")
    return RecipeError(f"{first['msg']}{more}", where=where or "recipe", got=first.get("input"))


def _is_field(step: Any) -> bool:
    # pydantic adds the tried branch of a union ("TeacherSection", "literal['none']") to the location.
    return isinstance(step, int) or (
        isinstance(step, str) and step.isidentifier() and not step[:1].isupper() and step != "str"
    )


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
