"""What was distilled into what: one sentence, and a card of key numbers for every student."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from potstill.report.charts import bar
from potstill.report.compare import Model, kept
from potstill.report.load import Run
from potstill.report.schema import ModelInfo
from potstill.report.text import listed, percent, ratio, scaled, shorten


@dataclass
class Kept:
    """How much of the teacher's score a student kept on one task."""

    task: str
    share: str
    scores: str
    bar: Markup


@dataclass
class Card:
    """Key numbers of a student: (number, what it counts) pairs and the score kept on every task."""

    label: str
    style: str
    how: str
    numbers: list[tuple[str, str]]
    kept: list[Kept]


def lead(runs: list[Run]) -> str:
    """Say in one or two sentences what was distilled into what."""
    plans = [run.plan for run in runs if run.plan]
    if not plans:
        return f"{listed([run.label for run in runs])}: no plan was found, so the page shows only what was measured."
    taught = [plan for plan in plans if plan.teacher]
    teachers = list(dict.fromkeys(_model(plan.teacher) for plan in taught))
    students = [_student(plan.student) if plan.student else "a student" for plan in plans]
    if not taught:
        return f"{listed(students)} {'was' if len(plans) == 1 else 'were'} trained on labels alone, without a teacher."
    if len(plans) == 1:
        return f"{teachers[0]} was distilled into {students[0]}."
    same = f", each {students[0]}" if len(set(students)) == 1 else f": {listed(students)}"
    text = f"{listed(teachers)} {'was' if len(teachers) == 1 else 'were'} distilled into {len(taught)} students{same}."
    return text if len(taught) == len(plans) else f"{text} {len(plans) - len(taught)} more learned from labels alone."


def cards(models: list[Model]) -> list[Card]:
    """Return one card for every student."""
    return [_card(model) for model in models if model.style is not None]


def _card(model: Model) -> Card:
    numbers = []
    words = (("parameters", "fewer parameters", "parameters"), ("ms_per_sample", "faster per sample", "per sample"))
    for name, compared, alone in words:
        factor = model.cost_ratio(name)
        if factor and factor >= 1:
            numbers.append((ratio(factor), compared))
        elif model.cost(name):
            unit = "" if name == "parameters" else "ms"
            numbers.append((scaled(model.cost(name), unit), alone))
    rows = [
        Kept(task, percent(share, 0), f"{percent(own)} of {percent(theirs)}", bar(share, model.style))
        for task, own, theirs, share in kept(model)
    ]
    return Card(model.label, model.style or "", how(model.run), numbers, rows)


def how(run: Run) -> str:
    """Say how a run was trained: policy, steps, modules."""
    plan = run.plan
    if plan is None:
        return ""
    if plan.teacher is None:
        words = ["labels only, no teacher"]
    elif plan.policy is None or plan.policy.name is None:
        words = ["no policy"]
    else:
        words = [f"policy {plan.policy.name}"]
    if plan.steps:
        words.append(f"{plan.steps:,} steps")
    if plan.modules:
        words.append(f"hidden states of {listed([module.name for module in plan.modules])}")
    return ", ".join(words)


def _student(info: ModelInfo) -> str:
    """A student has no name yet, only a class and the builder that made it."""
    size = f" of {scaled(info.parameters)} parameters" if info.parameters else ""
    builder = f" (builder: {shorten(info.model, 80)})" if info.model else ""
    return f"a {info.class_name or 'model'}{size}{builder}"


def _model(info: ModelInfo) -> str:
    known = [
        part for part in (info.class_name, f"{scaled(info.parameters)} parameters" if info.parameters else None) if part
    ]
    if info.model:
        return f"{shorten(info.model, 80)} ({', '.join(known)})" if known else shorten(info.model, 80)
    return f"a {info.class_name or 'model'}" + (f" of {known[-1]}" if info.parameters else "")
