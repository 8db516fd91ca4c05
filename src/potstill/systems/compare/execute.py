"""The comparison itself: check, time, tune, run, sum up."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.errors import InputError, PotstillError, suggest
from potstill.recipe import Recipe, load_recipe
from potstill.systems.compare.budget import Budget, parse_budgets, seconds_per_step, with_budget
from potstill.systems.compare.collect import row_of, write_csv
from potstill.systems.compare.folder import Cell, CompareFolder
from potstill.systems.compare.methods import apply_method, check_file_name, find_method
from potstill.systems.compare.page import write_page
from potstill.systems.compare.runner import Tell, run_jobs
from potstill.systems.compare.spaces import with_choice
from potstill.systems.compare.summary import summarise
from potstill.systems.compare.tuning import Study, load_optuna, tune

OWN_SETTINGS = ("train.threads=1", "train.keep_checkpoints=1", "evaluate.shown=0", "evaluate.attention=false")
"""What a comparison sets in every recipe, before ``--set``: equal machines, and folders that stay small."""


@dataclass
class Comparison:
    """What came out.

    Attributes:
        folder: Where everything lies.
        rows: A row per finished run, as in ``runs.csv``.
        summary: As in ``summary.csv``.
        failures: Why a run failed, by its name.
    """

    folder: Path
    rows: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / "index.html"


def compare(
    recipes: Sequence[str | Path],
    methods: Sequence[str],
    *,
    budget: str,
    out: str | Path,
    seeds: int = 5,
    jobs: int | None = None,
    trials: int = 0,
    overrides: Sequence[str] = (),
    against: str | None = None,
    progress: Tell | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Run methods at equal budget on recipes, over seeds, and sum up; what is finished already is not run again.

    Every run is a folder made by ``potstill distill`` in a process of its own. The same seed gives the same data in the
    same order to every method.

    Args:
        recipes: Names of packaged recipes, or files.
        methods: Losses, "labels", names of the catalogue, recipes; see ``find_method``.
        budget: "steps=400", "steps=400,800" or "minutes=2" of training.
        out: Folder; new, or that of a comparison to go on with or add to.
        seeds: Seeds 0 to seeds - 1.
        jobs: Processes at a time; None = half of the cores.
        trials: Trials of tuning for each method, recipe and budget; 0 = the recipes as they are.
        overrides: "data.concepts=50", for all recipes.
        against: The method the others are compared with; None = the first.
        progress: Called with {"event": "timing" | "begun" | "done" | "failed" | "note" | "plan", ...}.
        clock: Seconds, for "minutes".

    Raises:
        PotstillError: A mistake in what was asked; nothing has been run then.
    """
    tell = progress or (lambda event: None)
    parallel = jobs if jobs is not None else max(1, (os.cpu_count() or 1) // 2)
    for name, number, least in (("--seeds", seeds, 1), ("--jobs", parallel, 1), ("--trials", trials, 0)):
        if number < least:
            raise InputError("out of range", where=name, expected=f"at least {least}", got=number)
    if trials:
        load_optuna()
    budgets = parse_budgets(budget)
    found = resolve(recipes, methods, overrides)
    for pairs in found.values():
        for recipe in pairs.values():
            for one in budgets:
                if one.kind == "steps":
                    with_budget(recipe, one, None)
    folder = CompareFolder(out)
    with folder.opened():
        names = list(dict.fromkeys([*folder.methods, *(m for pairs in found.values() for m in pairs)]))
        if against is not None and against not in names:
            raise InputError(f'"{against}" is not compared', where="--against", hint=suggest(against, names))
        folder.ask(found, budgets, seeds, trials)
        failures = _set_steps(folder, clock, tell)
        if trials:
            failures |= _tune(folder, trials, parallel, tell)
        ready = []
        for cell in folder.cells():
            names = (cell.recipe, cell.method, cell.budget)
            if folder.noted("steps", *names) is None:
                continue  # its step could not be measured, which is told once
            if trials and folder.noted("tuned", *names) is None:
                failures[cell.name] = "no trial of this method succeeded"
                tell({"event": "failed", "job": cell.name, "why": failures[cell.name]})
            else:
                ready.append(folder.job_of(cell, recipe_of(folder, cell)))
        tell({"event": "plan", "jobs": len(ready), "left": sum(not job.is_done for job in ready)})
        failures |= run_jobs(ready, parallel, tell)
        return sum_up(folder, against, failures)


def resolve(
    recipes: Sequence[str | Path], methods: Sequence[str], overrides: Sequence[str]
) -> dict[str, dict[str, Recipe]]:
    """Return recipe name -> method name -> recipe, all checked; nothing is loaded but YAML.

    Raises:
        PotstillError: The first thing that does not fit.
    """
    if not recipes or not methods:
        raise InputError("nothing to compare", where="recipes" if not recipes else "--methods", expected="at least one")
    chosen = [find_method(word) for word in methods]
    _refuse_twice([method.name for method in chosen], "--methods")
    bases: dict[str, Recipe] = {}
    names = [Path(str(one)).stem if str(one).endswith((".yaml", ".yml")) else str(one) for one in recipes]
    _refuse_twice(names, "recipes")
    for name, source in zip(names, recipes):
        check_file_name(name, "recipes")
        try:
            bases[name] = load_recipe(source, [*OWN_SETTINGS, *overrides])
        except PotstillError as error:
            raise error.at(name) from None
    return {
        name: {method.name: apply_method(method, base.model_copy(update={"name": name})) for method in chosen}
        for name, base in bases.items()
    }


def _refuse_twice(names: Sequence[str], where: str) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f'"{twice}" is named twice', where=where)


def _set_steps(folder: CompareFolder, clock: Callable[[], float], tell: Tell) -> dict[str, str]:
    """Write down the steps of every pair and budget; where a budget is time, measure a step of each pair first.

    That is done for one after the other, before anything else runs. Returns why it failed, by the pair's name.
    """
    failures = {}
    for name, method in folder.pairs:
        try:
            for budget in folder.budgets:
                if folder.noted("steps", name, method, budget.name) is not None:
                    continue
                recipe, seconds = folder.recipe_of(name, method), folder.noted("timing", name, method)
                if budget.kind == "minutes" and seconds is None:
                    tell({"event": "timing", "job": f"{name}, {method}"})
                    seconds = seconds_per_step(recipe, clock)
                    folder.note("timing", name, method, value=seconds)
                stages = with_budget(recipe, budget, seconds).staged()
                steps = sum(stage.train.steps for _, stage in stages)
                folder.note("steps", name, method, budget.name, value=steps)
        except PotstillError as error:
            failures[f"{name}, {method}"] = str(error)
            tell({"event": "failed", "job": f"{name}, {method}", "why": str(error)})
    return failures


def _budgeted(folder: CompareFolder, name: str, method: str, budget: str) -> Recipe:
    """Return the recipe of a pair with the steps that were written down for a budget."""
    steps = folder.noted("steps", name, method, budget)
    return with_budget(folder.recipe_of(name, method), Budget("steps", steps), None)


def recipe_of(folder: CompareFolder, cell: Cell) -> Recipe:
    """Return the recipe of a cell, but for its seed: budget and best trial in it."""
    recipe = _budgeted(folder, cell.recipe, cell.method, cell.budget)
    best = folder.noted("tuned", cell.recipe, cell.method, cell.budget)
    return recipe if best is None else with_choice(recipe, best["choice"])


def _tune(folder: CompareFolder, trials: int, parallel: int, tell: Tell) -> dict[str, str]:
    studies = {}
    for name, method in folder.pairs:
        for budget in folder.budgets:
            is_ready = folder.noted("steps", name, method, budget.name) is not None
            if is_ready and folder.noted("tuned", name, method, budget.name) is None:
                where = folder / "trials" / name / method / budget.name
                recipe = _budgeted(folder, name, method, budget.name)
                studies[name, method, budget.name] = Study(f"{name}, {method}, {budget.name}", where, recipe)
    failures = tune(list(studies.values()), trials, parallel, tell)
    for key, study in studies.items():
        best = study.best()
        if best is not None:
            folder.note("tuned", *key, value=best)
    return failures


def sum_up(folder: CompareFolder, against: str | None, failures: Mapping[str, str]) -> Comparison:
    """Write ``runs.csv``, ``summary.csv`` and the page from the runs that are finished."""
    rows, failed = [], dict(failures)
    for cell in folder.cells():
        out = folder.out_of(cell)
        if not (out / "metrics.json").is_file():
            continue
        try:
            row = row_of(cell, out)
        except PotstillError as error:
            failed[cell.name] = str(error)
            continue
        seconds = folder.noted("timing", cell.recipe, cell.method)
        best = folder.noted("tuned", cell.recipe, cell.method, cell.budget)
        row["seconds_per_step"] = seconds
        row["tuned"] = json.dumps(best["choice"], sort_keys=True) if best else None
        rows.append(row)
    summary = summarise(rows, folder.methods, against)
    write_csv(folder / "runs.csv", rows)
    write_csv(folder / "summary.csv", summary)
    write_page(folder / "index.html", rows, summary, failed, folder.methods)
    return Comparison(folder.path, rows, summary, failed)
