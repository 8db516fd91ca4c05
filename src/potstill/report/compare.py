"""Who is compared with whom: models in columns, measures in rows, and the score kept by each student."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from markupsafe import Markup

from potstill.report.charts import Mark, bar, dot_chart
from potstill.report.load import Run
from potstill.report.schema import ModelMetrics, SplitMetrics, TaskScore
from potstill.report.text import (
    NONE,
    is_finite,
    is_number,
    joined,
    milliseconds,
    percent,
    points,
    ratio,
    scaled,
    significant,
)

SHARES = ("accuracy", "objects", "exact")
COSTS: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("parameters", "Parameters", scaled),
    ("bytes", "Size on disk", lambda value: scaled(value, "B")),
    ("flops_per_sample", "Work per sample", lambda value: scaled(value, "FLOPs")),
    ("ms_per_sample", "Time per sample", milliseconds),
    ("peak_memory_bytes", "Peak memory", lambda value: scaled(value, "B")),
)


@dataclass
class Model:
    """A column of the table. ``style`` is None for a teacher; ``teacher`` is the one of the same run."""

    label: str
    metrics: ModelMetrics
    run: Run
    style: str | None = None
    teacher: ModelMetrics | None = None

    def cost(self, name: str) -> float | None:
        """Return one cost, None if it was not measured."""
        return getattr(self.metrics.cost, name, None)

    def cost_ratio(self, name: str) -> float | None:
        """Return how many times smaller or faster than its teacher this model is."""
        own, theirs = self.cost(name), getattr(self.teacher and self.teacher.cost, name, None)
        return theirs / own if is_finite(own) and is_finite(theirs) and own > 0 and theirs > 0 else None


@dataclass
class Cell:
    """One number of a table, what stands small below it, and a bar where lengths help."""

    text: str
    sub: str = ""
    is_best: bool = False
    bar: Markup | None = None


@dataclass
class Row:
    """A measure and its cells, one a model."""

    label: str
    note: str = ""
    cells: list[Cell] = field(default_factory=list)


@dataclass
class Group:
    """Rows under one heading."""

    name: str
    rows: list[Row]


def collect_models(runs: list[Run], styles: dict[str, str]) -> list[Model]:
    """Return teachers first, then students. Runs that share a teacher (same class, size and scores) show it once."""
    teachers: dict[str, Model] = {}
    students: list[Model] = []
    for run in runs:
        models = run.metrics.models if run.metrics else {}
        own = {name: model for name, model in models.items() if model.role == "teacher"}
        for name, model in own.items():
            parameters = model.cost.parameters if model.cost else None
            scores = {task: main_score(task, score) for task, score in model.tasks.items()}
            teachers.setdefault(repr((name, model.class_name, parameters, scores)), Model(name, model, run))
        named = [(name, model) for name, model in models.items() if model.role == "student"]
        for name, model in named:
            label = run.label if len(named) == 1 else f"{run.label} · {name}"
            students.append(Model(label, model, run, styles[run.label], next(iter(own.values()), None)))
    columns = list(teachers.values())
    if len({model.label for model in columns}) < len(columns):
        for model in columns:
            model.label = f"{model.label} of {model.run.label}"
    return columns + students


def main_score(task: str, score: TaskScore | None) -> tuple[str, float | None]:
    """Return the name and value of the one number that stands for a task."""
    if score is None:
        return "", None
    order = ("objects", "exact", "accuracy") if task == "caption" else SHARES
    for name in order:
        if getattr(score, name) is not None:
            return name, getattr(score, name)
    for name, value in (score.model_extra or {}).items():
        if is_number(value):
            return name, float(value)
    return "", None


def task_names(models: list[Model]) -> list[str]:
    """Return every task any model was scored on, in order of appearance."""
    return list(dict.fromkeys(task for model in models for task in model.metrics.tasks))


def kept(model: Model) -> list[tuple[str, float, float, float]]:
    """Return (task, student's score, teacher's score, share kept) for tasks both were scored on."""
    rows = []
    for task, score in model.metrics.tasks.items():
        name, own = main_score(task, score)
        other, theirs = main_score(task, model.teacher.tasks.get(task) if model.teacher else None)
        if name == other and name in SHARES and is_finite(own) and is_finite(theirs) and theirs > 0:
            rows.append((task, own, theirs, own / theirs))
    return rows


def comparison(models: list[Model]) -> list[Group]:
    """Return the main table: size and speed, the score of each task, fidelity to the teacher; then by further split."""
    sizes = [
        _cost_row(models, name, label, show)
        for name, label, show in COSTS
        if name in ("parameters", "bytes", "ms_per_sample")
    ]
    scores = [_score_row(models, task) for task in task_names(models)]
    groups = [
        Group("Size and speed", sizes),
        Group("Score per task", scores),
        Group("Fidelity to the teacher", _fidelity_rows(models)),
    ]
    for split in dict.fromkeys(name for model in models for name in model.metrics.splits):
        seen = [_on_split(model, split) for model in models]
        rows = [_score_row(seen, task) for task in task_names(seen)]
        groups.append(Group(f"On the split {split}", [*rows, *_fidelity_rows(seen)]))
    return [Group(group.name, rows) for group in groups if (rows := [row for row in group.rows if _is_filled(row)])]


def details(models: list[Model]) -> list[Group]:
    """Return what a task reports beside its main score: other measures and the score by kind of sample."""
    groups = []
    for task in task_names(models):
        rows: dict[str, dict[int, str]] = {}
        main = next((name for model in models if (name := main_score(task, model.metrics.tasks.get(task))[0])), "")
        for number, model in enumerate(models):
            score = model.metrics.tasks.get(task)
            if score is None:
                continue
            if is_finite(score.samples):
                rows.setdefault("samples", {})[number] = f"{score.samples:,.0f}"
            for name in SHARES:
                if name != main and getattr(score, name) is not None:
                    rows.setdefault(name, {})[number] = percent(getattr(score, name))
            for name, value in (score.model_extra or {}).items():
                if name != main and is_number(value):
                    rows.setdefault(name, {})[number] = significant(float(value))
            for name, value in (score.kinds or {}).items():
                rows.setdefault(f"kind: {name}", {})[number] = percent(value)
        filled = [
            Row(label, cells=[Cell(cells.get(number, NONE)) for number in range(len(models))])
            for label, cells in rows.items()
        ]
        if filled:
            groups.append(Group(task, filled))
    return groups


def costs(models: list[Model]) -> list[Row]:
    """Return every cost with a bar relative to the costliest model."""
    rows = []
    for name, label, show in COSTS:
        values = [model.cost(name) for model in models]
        largest = max((value for value in values if is_finite(value)), default=0.0)
        if largest > 0:
            shares = [value / largest if is_finite(value) else None for value in values]
            pairs = zip(models, values, shares)
            rows.append(
                Row(label, cells=[Cell(show(v), bar=bar(s, model.style or "teacher")) for model, v, s in pairs])
            )
    return rows


def score_chart(models: list[Model], width: int) -> Markup | None:
    """Return the dot chart of main scores that are shares, None if there is none."""
    rows = []
    for task in task_names(models):
        marks = []
        for model in models:
            score = model.metrics.tasks.get(task)
            name, value = main_score(task, score)
            if name in SHARES and is_finite(value):
                error = score.stderr if is_finite(score.stderr) else math.nan
                marks.append(Mark(model.label, model.style, value, error))
        if marks:
            rows.append((task, marks))
    if not rows:
        return None
    spoken = "; ".join(f"{task}: " + ", ".join(f"{m.name} {percent(m.value)}" for m in marks) for task, marks in rows)
    return dot_chart(rows, f"Score per task. {spoken}.", width=width)


def _cost_row(models: list[Model], name: str, label: str, show: Callable[[float | None], str]) -> Row:
    word = "faster" if name == "ms_per_sample" else "smaller"
    cells = []
    for model in models:
        factor = model.cost_ratio(name)
        cells.append(Cell(show(model.cost(name)), f"{ratio(factor)} {word}" if factor and factor >= 1 else ""))
    return Row(label, cells=cells)


def _score_row(models: list[Model], task: str) -> Row:
    scores = [model.metrics.tasks.get(task) for model in models]
    found = [main_score(task, score) for score in scores]
    name = next((name for name, _ in found if name), "")
    show = percent if name in SHARES else significant
    cells = []
    for model, score, (_, value) in zip(models, scores, found):
        sub = []
        if model.teacher is not None:
            theirs = main_score(task, model.teacher.tasks.get(task))[1]
            if is_finite(value) and is_finite(theirs):
                change = value - theirs
                sub.append(f"{points(change)} points" if name in SHARES else f"{significant(change)} to the teacher")
        if score is not None and is_finite(score.stderr):
            sub.append(f"s.e. {100 * score.stderr:.1f}" if name in SHARES else f"s.e. {significant(score.stderr)}")
        cells.append(Cell(show(value), joined(sub)))
    _mark_best(models, scores, [value for _, value in found], cells)
    return Row(task, note=name, cells=cells)


def _mark_best(
    models: list[Model], scores: list[TaskScore | None], values: list[float | None], cells: list[Cell]
) -> None:
    """Mark the best student only where it leads every other by more than twice the standard error of the difference."""
    rivals = [
        (value, score.stderr, cell)
        for model, score, value, cell in zip(models, scores, values, cells)
        if model.style is not None and score is not None and is_finite(value) and is_finite(score.stderr)
    ]
    if len(rivals) < 2 or len(rivals) < sum(model.style is not None for model in models):
        return
    (best, error, cell), *others = sorted(rivals, key=lambda rival: rival[0], reverse=True)
    cell.is_best = all(best - value > 2 * math.hypot(error, other) for value, other, _ in others)


def _fidelity_rows(models: list[Model]) -> list[Row]:
    """Return a row a task: agreement large, whatever else was measured small below it."""
    rows = []
    for task in dict.fromkeys(task for model in models for task in model.metrics.fidelity or {}):
        cells = []
        for model in models:
            measured = (model.metrics.fidelity or {}).get(task) or {}
            values = {name: value for name, value in measured.items() if is_number(value) and is_finite(value)}
            words = {"kl": "KL {} nats", "ece": "ECE {}"}
            sub = [
                words.get(name, name + " {}").format(percent(value) if name == "ece" else significant(value, 2))
                for name, value in values.items()
                if name != "agreement"
            ]
            cells.append(Cell(percent(values.get("agreement")), joined(sub)))
        rows.append(Row(task, note="agreement", cells=cells))
    return rows


def _on_split(model: Model, split: str) -> Model:
    """Return the model with what was measured on a further split in place of the main one."""
    both = [
        None if one is None else ModelMetrics(role=one.role, **dict(one.splits.get(split, SplitMetrics())))
        for one in (model.metrics, model.teacher)
    ]
    return dataclasses.replace(model, metrics=both[0], teacher=both[1])


def _is_filled(row: Row) -> bool:
    return any(cell.text != NONE or cell.sub for cell in row.cells)
