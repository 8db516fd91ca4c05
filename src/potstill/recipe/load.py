"""Read a recipe from YAML, apply overrides, and turn every mistake into one placed message."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from potstill.errors import RecipeError, suggest
from potstill.recipe.check import check
from potstill.recipe.schema import OpenSection, Recipe

MAX_BYTES = 1 << 20
_QUOTE = "If it is text, a hash of digits say, put it in quotes."
_START = 'Start from a packaged one: "potstill config show optima-scenes".'
_STEP = re.compile(r"([A-Za-z_]\w*)|\[(\d{1,9})\]")
MAX_DEPTH = 32
_MAX_WHOLE = 2**63
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases (a few lines of them can unfold into gigabytes), tags and repeated keys."""

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.events.AliasEvent):
            raise RecipeError("YAML aliases are not allowed", where=_mark(event), hint="Write it out.")
        if getattr(event, "tag", None) is not None:
            hint = "Write the value alone; quotes make it text."
            raise RecipeError("YAML tags are not allowed", where=_mark(event), got=event.tag, hint=hint)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise RecipeError("keys are names", where=_mark(key_node), got=key)
            if key in seen:
                raise RecipeError(f'the key "{key}" stands twice', where=_mark(key_node))
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 takes "on" and "no" for booleans and 1e-3 for text; recipes follow YAML 1.2 in both.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rows if tag != "tag:yaml.org,2002:bool"]
    for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _mark(node: Any) -> str:
    mark = getattr(node, "start_mark", None)
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else "recipe"


def packaged_recipes() -> dict[str, Path]:
    """Return the recipes that ship with Potstill, by name."""
    folder = Path(str(files("potstill"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str | Path) -> Path:
    """Return the file of a recipe: a path, or the name of a packaged one."""
    path = Path(name)
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):  # longer than a path can be, or with a null character
        pass
    known = packaged_recipes()
    if str(name) in known:
        return known[str(name)]
    raise RecipeError(
        f'there is no recipe "{name}"', expected="a YAML file or a packaged name", hint=suggest(str(name), known)
    )


def read_yaml(text: str, where: str = "recipe") -> dict[str, Any]:
    """Parse YAML that must be a mapping; syntax errors name line and column."""
    try:
        value = yaml.load(text, Loader=_Loader)
    except RecipeError as error:
        error.where = f"{where}, {error.where}"
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise RecipeError(f"is not YAML ({problem})", where=place) from error
    except RecursionError as error:
        raise RecipeError("is nested too deeply", where=where) from error
    except (ValueError, OverflowError) as error:
        raise RecipeError(f"holds a value that cannot be read ({error})", where=where) from error
    if value is None:
        raise RecipeError("is empty", where=where, expected="a mapping of fields", hint=_START)
    if not isinstance(value, dict):
        raise RecipeError("is no recipe", where=where, expected="a mapping of fields", got=value, hint=_START)
    return value


def load_recipe(source: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """Return the validated recipe.

    Args:
        source: A path, the name of a packaged recipe, a mapping, or a recipe.
        overrides: ``a.b=c`` and ``objectives[0].weight=2``; values are read as YAML.

    Raises:
        RecipeError: With the path of the field, what was expected and what came.
    """
    if isinstance(source, Recipe):
        data = source.model_dump()
    elif isinstance(source, Mapping):
        data = copy.deepcopy(dict(source))
    else:
        path = find_recipe(source)
        try:
            if path.stat().st_size > MAX_BYTES:
                raise RecipeError("is larger than 1 MiB", where=str(path), expected="a recipe")
            data = read_yaml(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot be read ({error})", where=str(path)) from error
    for override in overrides:
        apply_override(data, override)
    return validate(data)


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one field in place: ``train.steps=100``. Sections on the way are created, list entries must exist."""
    path, equals, text = override.partition("=")
    steps = [m[1] or int(m[2]) for m in _STEP.finditer(path)]
    rebuilt = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in steps).lstrip(".")
    if not equals or rebuilt != path or not steps:
        raise RecipeError(
            "cannot read the override",
            where=f"--set {override}",
            expected="field.field=value or list[0].field=value",
            hint="Quote it for the shell if it holds spaces or brackets.",
        )
    where = f"--set {path}"
    given = read_yaml(f"value: {text}", f"--set {override}")
    if len(given) > 1:
        raise RecipeError("holds more than one value", where=where, got=text, hint="Repeat --set for every field.")
    value = given["value"]
    here: Any = data
    for i, step in enumerate(steps):
        last = i == len(steps) - 1
        if isinstance(step, int):
            if not isinstance(here, list) or step >= len(here):
                size = len(here) if isinstance(here, list) else 0
                raise RecipeError(
                    "there is no such entry",
                    where=where,
                    expected=f"an index below {size}" if size else "a list",
                    got=here if not isinstance(here, list) else step,
                )
        elif not isinstance(here, dict):
            raise RecipeError(f'"{step}" is looked for in something that is no section', where=where, got=here)
        if last:
            here[step] = value
        else:
            if isinstance(here, dict) and here.get(step) is None and isinstance(steps[i + 1], str):
                here[step] = {}
            here = here.get(step) if isinstance(here, dict) else here[step]


def validate(data: Mapping[str, Any]) -> Recipe:
    """Check a mapping against the schema; the first mistake becomes a ``RecipeError``."""
    _refuse_unwritable(data)
    recipe = check(Recipe, data)
    recipe.staged()  # a mistake inside a stage is one at the door too
    return recipe


def _refuse_unwritable(value: Any, where: str = "", depth: int = 0) -> None:
    """Refuse what a recipe cannot hold, or not be written down with and read back: also in fields no schema knows."""
    if depth > MAX_DEPTH:
        raise RecipeError("is nested too deeply", where=where[:60], expected=f"at most {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str) or _CONTROL.search(key):
                raise RecipeError("keys are names", where=where or "recipe", expected="printable text", got=key)
            _refuse_unwritable(inner, f"{where}.{key}".lstrip("."), depth + 1)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            _refuse_unwritable(inner, f"{where}[{i}]", depth + 1)
    elif isinstance(value, str) and (found := _CONTROL.search(value)):
        raise RecipeError("holds a control character", where=where, expected="printable text", got=ascii(found[0]))
    elif isinstance(value, float) and not math.isfinite(value):
        raise RecipeError("does not fit", where=where, expected="a finite number", got=repr(value), hint=_QUOTE)
    elif isinstance(value, int) and not -_MAX_WHOLE <= value < _MAX_WHOLE:
        # repr of more than 4300 digits fails, and nothing behind this door takes more than 64 bits.
        got = f"{value:#.3g}" if abs(value) < 10**300 else "a far larger one"
        raise RecipeError("does not fit", where=where, expected="a number of at most 64 bits", got=got, hint=_QUOTE)
    elif isinstance(value, date | bytes | set):
        raise RecipeError("does not fit", where=where, expected="text (in quotes) or a number", got=value)


def dump_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


__all__ = [
    "OpenSection",
    "Recipe",
    "apply_override",
    "dump_recipe",
    "find_recipe",
    "load_recipe",
    "packaged_recipes",
    "validate",
]
