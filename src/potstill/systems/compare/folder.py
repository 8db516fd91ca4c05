"""The folder of a comparison: what was asked, what was found out on the way, and a lock."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import InputError, IntegrityError, PotstillError
from potstill.recipe import Recipe, dump_recipe, load_recipe
from potstill.systems.compare.budget import Budget
from potstill.systems.compare.runner import Job
from potstill.train.checkpoint import read_json, write_json, write_text

VERSION = 1
_HINT = "Choose another folder with --out, or ask for what it holds."


@dataclass(frozen=True)
class Cell:
    """One run of a comparison, by the names of its recipe, method and budget, and its seed."""

    recipe: str
    method: str
    budget: str
    seed: int

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.recipe}, {self.method}, {self.budget}, seed {self.seed}"


class CompareFolder:
    """Paths, ``compare.json`` and the lock of a comparison.

    ``compare.json`` holds ``version``, ``recipes`` (recipe -> method -> the resolved recipe, before seed and budget),
    ``budgets`` (name -> kind, amount), ``seeds``, ``trials``, ``timing`` (recipe -> method -> seconds of a step),
    ``steps`` (recipe -> method -> budget -> steps) and ``tuned`` (recipe -> method -> budget -> what the best trial
    chose, and its score).

    Args:
        path: The folder; made when it is opened.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.state: dict[str, Any] = {
            "version": VERSION, "recipes": {}, "budgets": {}, "seeds": 0, "trials": 0,
            "timing": {}, "steps": {}, "tuned": {},
        }  # fmt: skip

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @contextmanager
    def opened(self) -> Iterator[CompareFolder]:
        """Hold the lock and read what was asked before.

        Raises:
            InputError: Another comparison runs here, or the folder holds something else.
            IntegrityError: ``compare.json`` is damaged.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError("is a file", where=str(self.path), expected="a folder")
        is_new = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        number = os.open(self / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError("another comparison is running in this folder", where=str(self.path)) from None
            self._read()
            yield self
        finally:
            os.close(number)
            if is_new and [p.name for p in self.path.iterdir()] == [".lock"]:
                (self / ".lock").unlink()
                self.path.rmdir()

    def _read(self) -> None:
        path = self / "compare.json"
        if not path.exists():
            if any(entry.name != ".lock" for entry in self.path.iterdir()):
                raise InputError("holds something else than a comparison", where=str(self.path), hint=_HINT)
            return
        stored = read_json(path, hint="Restore it, or start in another folder.")
        if not isinstance(stored, dict) or stored.get("version") != VERSION or set(stored) != set(self.state):
            raise IntegrityError("is no comparison of this version", where=str(path), hint="Start in another folder.")
        self.state = stored

    def ask(
        self, recipes: Mapping[str, Mapping[str, Recipe]], budgets: Iterable[Budget], seeds: int, trials: int
    ) -> None:
        """Add what is asked to what was asked before, and write it down.

        Raises:
            InputError: The folder holds the same names with another content; says where they differ.
        """
        known = self.state["recipes"]
        if known and trials != self.state["trials"]:
            raise InputError(
                "differs from what the folder holds",
                where="--trials",
                expected=str(self.state["trials"]),
                got=trials,
                hint=_HINT,
            )
        for name, methods in recipes.items():
            for method, recipe in methods.items():
                given = recipe.model_dump(mode="json")
                stored = known.get(name, {}).get(method)
                if stored is not None:
                    self._refuse_other(self.recipe_of(name, method), recipe, f"{method} on {name}")
                known.setdefault(name, {})[method] = given
        for budget in budgets:
            self.state["budgets"][budget.name] = {"kind": budget.kind, "amount": budget.amount}
        self.state["seeds"], self.state["trials"] = max(seeds, self.state["seeds"]), trials
        self.write()

    def _refuse_other(self, stored: Recipe, given: Recipe, where: str) -> None:
        found = _first_difference(stored.model_dump(mode="json"), given.model_dump(mode="json"))
        if found is not None:
            place, old, new = found
            raise InputError(
                "differs from what the folder holds", where=f"{where}: {place}", expected=repr(old), got=new, hint=_HINT
            )

    def write(self) -> None:
        """Write down what is known."""
        write_json(self / "compare.json", self.state)

    def note(self, key: str, *names: str, value: Any) -> None:
        """Write something down that was found out: ``note("timing", recipe, method, value=0.01)``."""
        here = self.state[key]
        for name in names[:-1]:
            here = here.setdefault(name, {})
        here[names[-1]] = value
        self.write()

    def noted(self, key: str, *names: str) -> Any | None:
        """Return what was noted, or None."""
        here = self.state[key]
        for name in names:
            here = (here or {}).get(name)
        return here

    @property
    def budgets(self) -> list[Budget]:
        """All budgets so far."""
        return [Budget(**row) for row in self.state["budgets"].values()]

    @property
    def methods(self) -> list[str]:
        """All methods so far, in the order in which they were asked for."""
        return list(dict.fromkeys(m for methods in self.state["recipes"].values() for m in methods))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """All (recipe, method) so far."""
        return [(name, method) for name, methods in self.state["recipes"].items() for method in methods]

    def recipe_of(self, name: str, method: str) -> Recipe:
        """Return the recipe of a pair, before seed, budget and tuning."""
        try:
            return load_recipe(self.state["recipes"][name][method])
        except PotstillError as error:
            raise error.at(str(self / "compare.json")) from None

    def cells(self) -> list[Cell]:
        """Return all cells, seed by seed: an interrupted comparison has as many seeds of one method as of another."""
        return [
            Cell(name, method, budget.name, seed)
            for seed in range(self.state["seeds"])
            for budget in self.budgets
            for name, method in self.pairs
        ]

    def out_of(self, cell: Cell) -> Path:
        """Return the run folder of a cell."""
        return self.path / "runs" / cell.recipe / cell.method / cell.budget / f"seed-{cell.seed}"

    def job_of(self, cell: Cell, recipe: Recipe) -> Job:
        """Write down the recipe of a cell, and return the job that runs it."""
        path = self.path / "recipes" / cell.recipe / cell.method / f"{cell.budget}.yaml"
        write_recipe(path, recipe)
        return Job(cell.name, path, self.out_of(cell), (f"seed={cell.seed}",))


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write a resolved recipe, unless it stands there already."""
    text = dump_recipe(recipe)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)


def _first_difference(stored: Any, given: Any, where: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(stored, dict) and isinstance(given, dict):
        rows = [(f"{where}.{key}".lstrip("."), stored.get(key), given.get(key)) for key in {**stored, **given}]
    elif isinstance(stored, list) and isinstance(given, list) and len(stored) == len(given):
        rows = [(f"{where}[{i}]", a, b) for i, (a, b) in enumerate(zip(stored, given))]
    else:
        return None if stored == given else (where, stored, given)
    return next((found for place, a, b in rows if (found := _first_difference(a, b, place))), None)
