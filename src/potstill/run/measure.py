"""The end of a run: export the student, measure teacher and student, write samples, attention and the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from potstill.data.sources import DataSource
from potstill.evaluate import evaluate_tasks, fidelity, measure, sample_answers
from potstill.export import export_student
from potstill.models.load import load_model
from potstill.objectives.base import TEACHER
from potstill.recipe import Recipe, load_recipe
from potstill.recipe.schema import TeacherSection
from potstill.report import build_report
from potstill.run.attention import attention_of
from potstill.run.build import build_source, build_teacher
from potstill.run.check import check_fit, check_splits
from potstill.run.folder import RunFolder
from potstill.run.prepare import Prepared, is_empty
from potstill.run.vocabularies import check_reading
from potstill.run.watch import Progress
from potstill.students import finish_student
from potstill.train.checkpoint import read_json, write_json, write_text


@dataclass
class Run:
    """A finished run.

    Attributes:
        folder: Where everything lies.
        student: The trained student.
        metrics: The content of ``metrics.json``; empty on all processes but the first.
    """

    folder: Path
    student: nn.Module
    metrics: dict[str, Any]

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / "report.html"


def finish(recipe: Recipe, folder: RunFolder, built: Prepared, progress: Progress) -> Run:
    """Export, measure and report, on the first process. Can be repeated: everything is written anew."""
    student = finish_student(built.student).requires_grad_(True).eval()
    if not folder.is_writer:
        return Run(folder.path, student, {})
    device = built.trainer.args.device
    built.teacher = _teacher_to_measure(recipe, built, progress)
    progress({"event": "measure", "what": "export"})
    export_student(
        student, folder / "student", processor=built.source.processor, batch=built.source.example(), overwrite=True
    )
    write_json(folder / "metrics.json", _metrics(recipe, built, progress))
    if recipe.evaluate.shown:
        models = {"teacher": built.teacher, "student": student}
        if built.teacher is not None and built.source.teacher_collator is not built.source.collator:
            models["teacher"] = None
            progress({"event": "note", "text": "samples: the student's alone, because the teacher reads other tokens"})
        shown = sample_answers(
            {k: m for k, m in models.items() if m is not None},
            built.source.split(recipe.evaluate.split, recipe.evaluate.samples),
            built.source.collator,
            n=recipe.evaluate.shown,
            inputs=built.recipe.inputs,
        )
        write_json(folder / "samples.json", shown)
    if recipe.evaluate.attention and built.teacher is not None:
        progress({"event": "measure", "what": "attention"})
        data = attention_of(built, recipe.evaluate)
        for note in data["notes"]:
            progress({"event": "note", "text": f"attention: {note}"})
        write_text(folder / "attention.json", json.dumps(data, ensure_ascii=False, separators=(",", ":")))
    else:  # what an earlier measurement of this run left
        (folder / "attention.json").unlink(missing_ok=True)
    student.to(device)
    build_report(folder.path)
    progress({"event": "done", "folder": str(folder.path)})
    return Run(folder.path, student, read_json(folder / "metrics.json"))


def _teacher_to_measure(recipe: Recipe, built: Prepared, progress: Progress) -> nn.Module | None:
    """Return the teacher if it is to be measured; one that was read from its cache is loaded only now."""
    if built.teacher is None or not recipe.evaluate.teacher:
        if built.teacher is not None:
            progress({"event": "note", "text": "the teacher is not measured, as evaluate.teacher says"})
        return None
    if not is_empty(built.teacher):
        return built.teacher
    progress({"event": "measure", "what": "loading the teacher"})
    return build_teacher(built.recipe.teacher, TEACHER).to(built.trainer.args.device)


def _metrics(recipe: Recipe, built: Prepared, progress: Progress) -> dict[str, Any]:
    section, source = recipe.evaluate, built.source
    common = {"batch_size": section.batch_size, "max_samples": section.samples, "inputs": built.recipe.inputs}
    data = {"dataset": source.split(section.split, section.samples), "collator": source.collator}
    pairs = [(m["name"], p["student"], p["teacher"]) for m in built.plan["modules"] for p in m["pairs"]]
    models = {}
    if built.teacher is not None:
        progress({"event": "measure", "what": "teacher"})
        given = {**data, "collator": source.teacher_collator}
        models["teacher"] = measure(built.teacher, role="teacher", **given, **common)
    progress({"event": "measure", "what": "student"})
    models["student"] = measure(
        built.student, role="student", teacher=built.teacher, pairs=pairs or None, **data, **common
    )
    for name, model in (("teacher", built.teacher), ("student", built.student)):
        for split in section.splits if model is not None else ():
            progress({"event": "measure", "what": f"{name} on {split}"})
            dataset = source.split(split, section.samples)
            near_to = built.teacher if name == "student" else None
            models[name].setdefault("splits", {})[split] = _on_split(
                model, dataset, source, near_to, common, is_teacher=name == "teacher"
            )
    return {"version": 1, "split": section.split, "samples": section.samples, "models": models}


def _on_split(
    model: nn.Module,
    dataset: Any,
    source: DataSource,
    teacher: nn.Module | None,
    common: Mapping[str, Any],
    *,
    is_teacher: bool = False,
) -> dict[str, Any]:
    """Return task scores and, with a teacher, the fidelity to it on one more split."""
    collator = source.teacher_collator if is_teacher else source.collator
    entry = {"tasks": evaluate_tasks(model, dataset, collator, **common)}
    if teacher is not None:
        entry["fidelity"] = fidelity(model, teacher, dataset, source.collator, **common) or None
    return entry


def evaluate_model(
    model: str | Path,
    recipe: str | Path | Mapping[str, Any] | Recipe = "optima-scenes",
    *,
    teacher: str | Path | None = None,
    split: str | None = None,
    samples: int | None = None,
    overrides: Sequence[str] = (),
    source: DataSource | None = None,
) -> dict[str, Any]:
    """Measure a saved model on the data of a recipe; with a teacher also its fidelity.

    Args:
        model: Folder, packaged name or hub name.
        recipe: Whose data and ``evaluate`` section to use.
        teacher: The model to be like.
        split: In place of the recipe's, and of the further splits it names.
        samples: In place of the recipe's.
        overrides: ``"data.image_size=48"``.
        source: Data made in Python, in place of what the recipe names.

    Returns:
        The entry of one model as in ``metrics.json``.
    """
    changed = [f"evaluate.{k}={v}" for k, v in (("split", split), ("samples", samples)) if v is not None]
    recipe = load_recipe(recipe, [*overrides, *changed])
    section = recipe.evaluate
    source = build_source(recipe) if source is None else source
    check_splits(recipe, source)
    loaded = load_model(model, where="model")
    check_fit(loaded, "model", source)
    teacher_loaded = load_model(teacher, where="teacher") if teacher else None
    if teacher_loaded is not None:
        check_reading(source, {TEACHER: teacher_loaded}, {TEACHER: (TEACHER, TeacherSection(model=str(teacher)))})
        check_fit(teacher_loaded, "teacher", source)
    common = {"batch_size": section.batch_size, "max_samples": section.samples, "inputs": recipe.inputs}
    entry = measure(
        loaded,
        role="student",
        teacher=teacher_loaded,
        dataset=source.split(section.split, section.samples),
        collator=source.collator,
        **common,
    )
    for name in section.splits if split is None else ():
        dataset = source.split(name, section.samples)
        entry.setdefault("splits", {})[name] = _on_split(loaded, dataset, source, teacher_loaded, common)
    return entry
