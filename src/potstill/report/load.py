"""Opening run folders: every file is optional, every file that is there must be whole."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from potstill.errors import InputError, IntegrityError
from potstill.report.history import History, read_history
from potstill.report.schema import Attention, Metrics, Plan, Sample

T = TypeVar("T", bound=BaseModel)

FILES = (
    "recipe.yaml",
    "plan.json",
    "environment.json",
    "metrics.json",
    "history.jsonl",
    "samples.json",
    "attention.json",
)


@dataclass
class Run:
    """One run folder in memory. A field is None where its file does not exist (yet)."""

    path: Path
    label: str
    recipe: str | None
    plan: Plan | None
    environment: dict[str, Any] | None
    metrics: Metrics | None
    history: History | None
    samples: list[Sample] | None
    attention: Attention | None

    @property
    def missing(self) -> list[str]:
        """Names of the files that are not there."""
        read = (self.recipe, self.plan, self.environment, self.metrics, self.history, self.samples, self.attention)
        return [name for name, value in zip(FILES, read) if value is None]


def load_runs(paths: Sequence[Path]) -> list[Run]:
    """Read run folders and give each a label of its own: the plan's name, else the folder's, else the longer path.

    Raises:
        InputError: if a path is not a run folder or is given twice.
        IntegrityError: if a file in it is damaged.
    """
    resolved = [path.resolve() for path in paths]
    for path, count in Counter(resolved).items():
        if count > 1:
            raise InputError("this run folder is given twice", where=str(path), hint="Name each run once.")
    runs = [_load_run(path) for path in resolved]
    for naming in (_folder_name, _folder_and_parent, lambda run: str(run.path)):
        taken = Counter(run.label for run in runs)
        for run in runs:
            if taken[run.label] > 1:
                run.label = naming(run)
    return runs


def _folder_name(run: Run) -> str:
    return run.path.name


def _folder_and_parent(run: Run) -> str:
    return f"{run.path.parent.name}/{run.path.name}"


def _load_run(path: Path) -> Run:
    if not path.is_dir():
        got = "a file" if path.exists() else "nothing there"
        raise InputError("not a run folder", where=str(path), expected="the --out folder of a run", got=got)
    if not any(os.path.lexists(path / name) for name in FILES):
        hint = "Give the folder that `potstill distill` wrote."
        raise InputError("not a run folder", where=str(path), expected="any of " + ", ".join(FILES), hint=hint)
    plan = _read_json(path / "plan.json", Plan)
    history_file = path / "history.jsonl"
    samples = _read_json(path / "samples.json", list[Sample])
    return Run(
        path=path,
        label=(plan.name if plan else None) or path.name,
        recipe=_read_recipe(path / "recipe.yaml"),
        plan=plan,
        environment=_read_json(path / "environment.json", dict[str, Any]),
        metrics=_read_json(path / "metrics.json", Metrics),
        history=_read_history(history_file),
        samples=samples,
        attention=_read_json(path / "attention.json", Attention),
    )


def _read_history(path: Path) -> History | None:
    if not os.path.lexists(path):
        return None
    _refuse_odd_file(path)
    try:
        return read_history(path)
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror})") from None


def _read_json(path: Path, shape: Any) -> Any:
    text = _read_text(path)
    if text is None:
        return None
    try:
        return TypeAdapter(shape).validate_python(json.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(key) for key in first["loc"])
        wrong = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
        message = f"{place}: {wrong}" if place else wrong
        raise _damaged(path, message, got=repr(first.get("input"))) from None
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"not valid JSON ({error})") from None


def _read_recipe(path: Path) -> str | None:
    text = _read_text(path)
    if text is None:
        return None
    try:
        if not isinstance(yaml.safe_load(text), dict):
            raise _damaged(path, "not a recipe", expected="a YAML mapping")
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        # The last but one are what PyYAML makes of a tag in front of a value of another kind.
        raise _damaged(path, f"not valid YAML ({' '.join(str(error).split())})") from None
    return text


def _refuse_odd_file(path: Path) -> None:
    """Refuse a link out of the run folder, which would show a stranger's choice of file, and what is no plain file."""
    try:
        is_inside = path.resolve().is_relative_to(path.parent.resolve())
    except (OSError, RuntimeError):  # a link to itself
        is_inside = False
    if path.is_symlink() and not is_inside:
        raise _damaged(path, "is a link that leads out of the run folder")
    if not path.is_file():
        raise _damaged(path, "is no file")


def _read_text(path: Path) -> str | None:
    if not os.path.lexists(path):
        return None
    _refuse_odd_file(path)
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise _damaged(path, f"cannot be read ({error})") from None


def _damaged(path: Path, message: str, **details: Any) -> IntegrityError:
    hint = (
        f"Restore {path.name} from a copy, or delete it: the report leaves out what is missing, "
        "and `potstill distill … --resume` or `potstill evaluate` writes it anew."
    )
    return IntegrityError(message, where=str(path), hint=hint, **details)
