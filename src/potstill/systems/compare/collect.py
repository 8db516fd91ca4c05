"""What the runs of a comparison measured, a row a run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from potstill.errors import InputError, IntegrityError
from potstill.evaluate.tasks import main_score
from potstill.systems.compare.folder import Cell
from potstill.train.checkpoint import read_json, write_text

_DAMAGED = "Delete the run's folder: the comparison makes it anew."
_ORIGIN = ("gpu", "threads", "python", "torch", "transformers", "potstill", "commit")


def row_of(cell: Cell, folder: Path) -> dict[str, Any]:
    """Return everything a finished run says: names, scores, costs, where and when.

    Scores are columns ``<split>.<task>.<measure>``; those of the teacher stand behind ``teacher.``. ``score`` is the
    mean over the tasks of each task's main score on the recipe's split, ``score.<split>`` that of its other splits.
    """
    metrics = _read(folder / "metrics.json")
    try:
        student, teacher = metrics["models"]["student"], metrics["models"].get("teacher")
        row: dict[str, Any] = {
            "recipe": cell.recipe,
            "method": cell.method,
            "budget": cell.budget,
            "seed": cell.seed,
            "score": mean_score(student["tasks"]),
        }
        for split, entry in (student.get("splits") or {}).items():
            row[f"score.{split}"] = mean_score(entry["tasks"])
        row["teacher_score"] = mean_score(teacher["tasks"]) if teacher else None
        for measure in ("kl", "agreement"):
            found = [task[measure] for task in (student["fidelity"] or {}).values() if task.get(measure) is not None]
            row[measure] = sum(found) / len(found) if found else None
        row["parameters"] = student["cost"]["parameters"]
        row["teacher_parameters"] = teacher["cost"]["parameters"] if teacher else None
        row |= _training(folder)
        row |= _scores("", student, metrics["split"])
        row |= _scores("teacher.", teacher, metrics["split"]) if teacher else {}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(
            f"does not hold what a run measures ({error!r})", where=str(folder), hint=_DAMAGED
        ) from error
    made = _read(folder / "environment.json")
    machine = f"{made.get('cpu')}, {made.get('cores')} cores"
    return {**row, "machine": machine, **{k: made.get(k) for k in _ORIGIN}, "date": str(made.get("started"))[:10]}


def mean_score(tasks: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Return the mean of the tasks' main scores, or None."""
    found = [score for entry in tasks.values() if (score := main_score(entry)) is not None]
    return sum(found) / len(found) if found else None


def _scores(prefix: str, model: Mapping[str, Any], split: str) -> dict[str, float]:
    by_split = {split: model["tasks"]} | {name: entry["tasks"] for name, entry in (model.get("splits") or {}).items()}
    found = {}
    for name, tasks in by_split.items():
        for task, entry in tasks.items():
            for measure, value in entry.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    found[f"{prefix}{name}.{task}.{measure}"] = value
    for task, entry in (model.get("fidelity") or {}).items():
        found |= {f"{prefix}{split}.{task}.{m}": entry[m] for m in ("kl", "agreement") if entry.get(m) is not None}
    return found


def _training(folder: Path) -> dict[str, Any]:
    """Return steps, seconds of training, learning rate and what describes the data."""
    plan = _read(folder / "plan.json")
    stages = plan.get("stages") or [plan]
    steps = {stage.get("stage"): stage["steps"] for stage in stages}
    seconds, last = 0.0, {}
    for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["event"] == "step":
            last[event.get("stage")] = event
    for stage, event in last.items():
        # Steps after the last logged one take as long as those before it.
        seconds += event["seconds"] * steps.get(stage, plan["steps"]) / event["step"]
    data = plan["data"]
    return {
        "steps": sum(steps.values()),
        "seconds": round(seconds, 3) if last else None,
        "learning_rate": plan["train"]["learning_rate"],
        "classes": data.get("classes"),
        "train_samples": data.get("train_samples"),
        "image_size": data.get("image_size"),
    }


def _read(path: Path) -> dict[str, Any]:
    found = read_json(path, hint=_DAMAGED)
    if not isinstance(found, dict):
        raise IntegrityError("is no mapping", where=str(path), hint=_DAMAGED)
    return found


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file of rows; what a row lacks stays empty. Columns stand in the order in which they first come."""
    rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a file as text.

    Raises:
        InputError: There is no such file, or it is no table.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError("cannot be read", where=str(path), expected="a CSV file", got=str(error)) from error
