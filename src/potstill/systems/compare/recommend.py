"""What the runs of earlier comparisons suggest for a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.errors import InputError
from potstill.run import plan
from potstill.systems import AutoDistiller
from potstill.systems.compare.collect import read_csv
from potstill.systems.compare.execute import OWN_SETTINGS

FEATURES = ("classes", "train_samples", "image_size", "teacher_parameters", "parameters", "steps")
"""Columns of ``runs.csv`` that describe a task."""


def advise(
    files: Sequence[str | Path], recipes: Sequence[str | Path] = (), *, n: int = 5, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Fit an ``AutoDistiller`` on the runs of earlier comparisons and ask it about recipes.

    A task is a recipe with a budget. It is described by the ``FEATURES`` that its runs have, which are few: with a
    handful of tasks the suggestion is little more than what was best on tasks of that size.

    Args:
        files: ``runs.csv`` of comparisons.
        recipes: What to suggest methods for; their teacher is loaded, nothing is trained.
        n: How many methods.
        overrides: For the recipes.

    Returns:
        ``recipes``: recipe -> rows of ``method`` and ``ratio``, its expected share of the teacher's score;
        ``left_out``: what ``AutoDistiller.leave_one_task_out`` says, or None if the runs are of one task.

    Raises:
        InputError: A file is no such table, or holds no run with a teacher's score.
    """
    runs = [run for file in files for run in runs_of(Path(file))]
    known = {name for run in runs for name in run["features"]}
    distiller = AutoDistiller().fit(runs)
    found = {}
    for recipe in recipes:
        features = {k: v for k, v in _features_of_plan(plan(recipe, [*OWN_SETTINGS, *overrides])).items() if k in known}
        found[str(recipe)] = [
            {"method": one.pipeline["method"], "ratio": one.ratio} for one in distiller.recommend(features, n)
        ]
    is_several = len({run["task"] for run in runs}) > 1
    return {"recipes": found, "left_out": AutoDistiller().leave_one_task_out(runs) if is_several else None}


def runs_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a ``runs.csv`` as the distiller takes them; runs without a teacher's score are left out."""
    runs = []
    for number, row in enumerate(read_csv(path), start=2):
        try:
            if not row["teacher_score"] or not row["score"]:
                continue
            features = {name: float(row[name]) for name in FEATURES if row.get(name)}
            runs.append(
                {
                    "task": f"{row['recipe']}, {row['budget']}",
                    "features": features,
                    "pipeline": {"method": row["method"]},
                    "ratio": float(row["score"]) / float(row["teacher_score"]),
                }
            )
        except (KeyError, ValueError, TypeError, ZeroDivisionError) as error:
            raise InputError(
                f"is no run of a comparison ({error!r})",
                where=f"{path}, line {number}",
                expected="a row of runs.csv as potstill compare writes it",
            ) from error
    if not runs:
        raise InputError("holds no run with a teacher's score", where=str(path), expected="runs.csv of a comparison")
    return runs


def _features_of_plan(plans: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    last = plans[-1]
    data, teacher = last["data"], last["teacher"] or {}
    found = {
        **{name: data.get(name) for name in ("classes", "train_samples", "image_size")},
        "teacher_parameters": teacher.get("parameters"),
        "parameters": last["student"]["parameters"],
        "steps": sum(one["steps"] for one in plans),
    }
    return {name: float(value) for name, value in found.items() if value is not None}
