"""How plans, progress and results look in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table


class Display:
    """Turns the events of a run into a plan, a progress bar with the arm being played, and lines."""

    def __init__(self, title: str = "distil", console: Console | None = None):
        self._console = console or Console(markup=False)  # "[/b]" is a name like any other
        self._title = title
        self._progress = Progress(
            TextColumn("{task.description:12}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[arm]}", style="cyan", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = None

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exc) -> None:
        if self._task is not None:
            self._progress.stop()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show one event of a run."""
        kind = event["event"]
        if kind == "plan":
            show_plan(event["plan"], self._console)
            name = self._title if event["stages"] == 1 else event["stage"]
            self._progress.start()
            self._task = self._progress.add_task(name, total=event["plan"]["steps"], arm="")
        elif kind == "step" and self._task is not None:
            self._progress.update(self._task, completed=event["step"], total=event["steps"], arm=event.get("arm") or "")
        elif kind == "measure":
            self._console.print(f"measuring: {event['what']}")
        elif kind == "note":
            self._console.print(event["text"])


def show_plan(plan: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a plan."""
    console = console or Console(markup=False)
    for role in ("teacher", "student"):
        model = plan[role]
        if model:
            console.print(f"{role}: {model['class']} ({model['model']}), {model['parameters'] / 1e6:.2f}M parameters")
    if plan["modules"]:
        table = _table("module", "student layer", "teacher layer", "shapes", "projector", title=f"Plan: {plan['name']}")
        for module in plan["modules"]:
            for pair in module["pairs"]:
                table.add_row(
                    module["name"],
                    pair["student"],
                    pair["teacher"],
                    f"{_shape(pair['student_shape'])} / {_shape(pair['teacher_shape'])}",
                    "yes" if pair["projector"] else "-",
                )
        console.print(table)
    table = _table("objective", "loss", "role", "on", "weight", "at start")
    for row in plan["objectives"]:
        start = "-" if row["start"] is None else f"{row['start']:.3g}"
        place = row["on"] or row["module"] or "-"
        table.add_row(row["name"], row["loss"], row["role"], place, f"{row['weight']:g}", start)
    console.print(table)
    policy = plan["policy"]
    if policy:
        console.print(
            f"policy: {policy['name']} over {', '.join(policy['arms'])}; "
            f"{policy['rounds']} rounds of {policy['round_steps']} steps, reward: {policy['reward']}"
        )
    train = plan["train"]
    console.print(
        f"train: {train['steps']} steps of {train['batch_size']} x {train['accumulation']}, "
        f"{train['optimizer']} {train['learning_rate']:g} {train['schedule']}, {train['precision']}"
    )


def _table(*names: str, title: str | None = None) -> Table:
    table = Table(title=title)
    for name in names:
        table.add_column(name, overflow="fold")  # a path cut short says nothing
    return table


def show_metrics(models: Mapping[str, Mapping[str, Any] | None], console: Console | None = None) -> None:
    """Print one table: parameters, size, time per sample, score and fidelity per task."""
    console = console or Console(markup=False)
    models = {name: entry for name, entry in models.items() if entry}
    tasks = list(dict.fromkeys(task for entry in models.values() for task in entry["tasks"]))
    table = Table("", *models)
    table.add_row("parameters", *(f"{e['cost']['parameters'] / 1e6:.2f}M" for e in models.values()))
    table.add_row("size", *(f"{e['cost']['bytes'] / 1e6:.1f} MB" for e in models.values()))
    table.add_row("time per sample", *(f"{e['cost']['ms_per_sample']:.2f} ms" for e in models.values()))
    for task in tasks:
        table.add_row(task, *(_score(e["tasks"].get(task)) for e in models.values()))
    for task in tasks:
        cells = [((e.get("fidelity") or {}).get(task) or {}).get("agreement") for e in models.values()]
        if any(c is not None for c in cells):
            table.add_row(f"agrees on {task}", *("-" if c is None else f"{100 * c:.1f} %" for c in cells))
    for split in dict.fromkeys(name for e in models.values() for name in e.get("splits") or ()):
        for task in tasks:
            found = [((e.get("splits") or {}).get(split) or {}).get("tasks", {}).get(task) for e in models.values()]
            table.add_row(f"{task} on {split}", *map(_score, found))
    console.print(table)


def _score(scores: Mapping[str, Any] | None) -> str:
    if not scores:
        return "-"
    for key in ("accuracy", "objects"):
        if scores.get(key) is not None:
            return f"{100 * scores[key]:.1f} %"
    return "-"


def _shape(shape: list[int]) -> str:
    return "×".join(str(n) for n in shape[1:])
