"""Matched layers: the plan's layer maps and objectives, and the CKA measured between student and teacher layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup

from potstill.report.charts import bar
from potstill.report.compare import Model
from potstill.report.load import Run
from potstill.report.schema import ModulePlan, ObjectivePlan, PartPlan
from potstill.report.text import NBSP, NONE, is_finite, scaled, short


@dataclass
class CkaRow:
    """A matched pair and, for every student, its CKA as text and bar."""

    student: str
    teacher: str
    cells: list[tuple[str, Markup]]


@dataclass
class CkaGroup:
    """The pairs of one module and the mean over them for every student."""

    module: str
    style: str
    means: list[str]
    rows: list[CkaRow]


@dataclass
class LayerMap:
    """What was matched in the runs named by ``labels``: layers, objectives, helpers. Ready to print."""

    labels: list[str]
    modules: list[tuple[str, str, list[tuple[str, str, str, str, str]]]]
    objectives: list[tuple[str, str, str, str, str, str]]
    parts: list[tuple[str, str]]


def cka_groups(models: list[Model], styles: dict[str, str]) -> list[CkaGroup]:
    """Return CKA by module and pair, a column for each student that has any."""
    measured = [model.metrics.cka or [] for model in cka_models(models)]
    values = [{(pair.module, pair.student, pair.teacher): pair.cka for pair in pairs} for pairs in measured]
    keys = list(dict.fromkeys(key for known in values for key in known))
    groups = []
    for module in dict.fromkeys(key[0] for key in keys):
        style = styles.get(module, "plain")
        mine = [key for key in keys if key[0] == module]
        rows = [
            CkaRow(
                _local(student, module),
                _local(teacher, module),
                [_cka_cell(known.get((module, student, teacher)), style) for known in values],
            )
            for _, student, teacher in mine
        ]
        groups.append(CkaGroup(module, style, [_mean([known.get(key) for key in mine]) for known in values], rows))
    return groups


def cka_models(models: list[Model]) -> list[Model]:
    """Return the models whose layers were compared."""
    return [model for model in models if model.metrics.cka]


def layer_maps(runs: list[Run], styles: dict[str, str]) -> list[LayerMap]:
    """Return the plans' layer maps; runs with the same one share it."""
    maps: dict[str, LayerMap] = {}
    for run in runs:
        if run.plan is None:
            continue
        modules = [_module(module, styles) for module in run.plan.modules]
        objectives = [_objective(objective) for objective in run.plan.objectives]
        parts = [_part(part) for part in run.plan.parts]
        if modules or objectives or parts:
            same = maps.setdefault(repr((modules, objectives, parts)), LayerMap([], modules, objectives, parts))
            same.labels.append(run.label)
    return list(maps.values())


def _module(module: ModulePlan, styles: dict[str, str]) -> tuple[str, str, list[tuple[str, str, str, str, str]]]:
    pairs = [
        (
            _local(pair.student, module.name),
            _shape(pair.student_shape),
            _local(pair.teacher, module.name),
            _shape(pair.teacher_shape),
            "projector" if pair.projector else "none needed",
        )
        for pair in module.pairs
    ]
    return module.name, styles.get(module.name, "plain"), pairs


def _objective(objective: ObjectivePlan) -> tuple[str, str, str, str, str, str]:
    optional = (objective.loss, objective.role, objective.module, objective.on)
    loss, role, module, on = (value or NONE for value in optional)
    return objective.name, loss, role, short(objective.weight), module, on


def _part(part: PartPlan) -> tuple[str, str]:
    return part.name, scaled(part.parameters)


def _local(path: str, module: str) -> str:
    """Drop the module's own name from the front of a path: the heading says it already."""
    return path[len(module) + 1 :] if path.startswith(module + ".") else path


def _shape(shape: list[int] | None) -> str:
    return f"{NBSP}×{NBSP}".join(str(size) for size in shape) if shape else NONE


def _cka_cell(value: float | None, style: str) -> tuple[str, Markup]:
    return (f"{value:.2f}" if is_finite(value) else NONE), bar(value, style)


def _mean(values: list[float | None]) -> str:
    finite = [value for value in values if is_finite(value)]
    return f"{math.fsum(finite) / len(finite):.2f}" if finite else NONE
