"""Carry out a recipe: build, plan, train stage by stage, export, measure, report."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from potstill.data.sources import DataSource
from potstill.errors import InputError, IntegrityError, Interrupted
from potstill.evaluate import measure, sample_answers
from potstill.export import export_student
from potstill.models.load import load_model
from potstill.recipe import Recipe, load_recipe
from potstill.report import build_report
from potstill.run.build import (
    build_arguments,
    build_modules,
    build_objectives,
    build_policy,
    build_source,
    build_student,
    build_teacher,
    freeze,
)
from potstill.run.folder import RunFolder, environment, explain_disk
from potstill.run.plan import make_plan
from potstill.teachers import LiveTeacher
from potstill.train import DistillationTrainer, DistillModule
from potstill.train.checkpoint import load_weights, newest_valid, read_json, save_weights, seal, verify, write_json

Progress = Callable[[Mapping[str, Any]], None]


@dataclass
class Run:
    """A finished run.

    Attributes:
        folder: Where everything lies.
        student: The trained student.
        metrics: The content of ``metrics.json``.
    """

    folder: Path
    student: nn.Module
    metrics: dict[str, Any]

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / "report.html"


@dataclass
class Prepared:
    """One stage, built and probed, ready to train."""

    recipe: Recipe
    source: DataSource
    student: nn.Module
    teacher: nn.Module | None
    trainer: DistillationTrainer
    plan: dict[str, Any]


def prepare(
    recipe: Recipe,
    folder: Path,
    *,
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    history: Path | None = None,
    stage: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Prepared:
    """Build everything a stage needs and probe it on one batch; nothing is written.

    Args:
        recipe: The stage's recipe (without stages).
        folder: Where checkpoints will go.
        student: The student of the stage before; None = build it.
        teacher: The teacher, if it is loaded already.
        history: File for the history.
        stage: Name of the stage in the history.
        callbacks: Further callbacks of the Trainer.
    """
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    source = build_source(recipe)
    teacher = build_teacher(recipe) if recipe.teacher is not None and teacher is None else teacher
    teacher = None if recipe.teacher is None else teacher
    student = build_student(recipe, teacher, source) if student is None else student
    freeze(student, recipe.freeze)
    modules = build_modules(recipe, student, teacher)
    dataset = source.split("train")
    batch = source.collator([dataset[0], dataset[1]])
    objectives = build_objectives(recipe, modules, batch)
    module = DistillModule(student, objectives, inputs=recipe.inputs)
    policy = build_policy(recipe.policy, module.modules_named, recipe.seed)
    if recipe.train.gradient_checkpointing:
        if not hasattr(student, "gradient_checkpointing_enable"):
            raise InputError("this student has no gradient checkpointing", where="train.gradient_checkpointing")
        student.gradient_checkpointing_enable({"use_reentrant": False})
    live = None
    if teacher is not None:
        live = LiveTeacher(teacher, outputs=module.teacher_outputs, taps=module.teacher_taps, inputs=recipe.inputs)
    trainer = DistillationTrainer(
        module,
        teacher=live,
        policy=policy,
        args=build_arguments(
            recipe.train, recipe.policy, seed=recipe.seed, folder=folder, cpu=not torch.cuda.is_available()
        ),
        train_dataset=dataset,
        data_collator=source.collator,
        history=history,
        stage=stage,
        callbacks=list(callbacks),
    )
    plan = make_plan(recipe, source, student, teacher, modules, trainer)
    return Prepared(recipe, source, student, teacher, trainer, plan)


def plan(source: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the plan of every stage of a recipe without training or writing anything."""
    recipe = load_recipe(source, overrides)
    plans, student = [], None
    for name, stage in recipe.staged():
        built = prepare(stage, Path("unused"), student=student, stage=name)
        student = built.student
        plans.append(built.plan)
    return plans


def distill(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Carry out a recipe.

    Args:
        recipe: Path, name of a packaged recipe, mapping or ``Recipe``.
        out: Run folder; must be empty or new unless ``resume``.
        overrides: ``"train.steps=100"``.
        resume: Go on from the newest complete checkpoint.
        progress: Called with {"event": "plan" | "step" | "stage" | "measure" | "done", ...}.

    Returns:
        The finished run; everything is in its folder too.

    Raises:
        PotstillError: A mistake of the recipe or its files. What was done is kept and can be resumed.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was written.
    """
    transformers_logging.set_verbosity_error()
    progress = progress or (lambda event: None)
    folder = RunFolder(out)
    recipe = folder.start(load_recipe(recipe, overrides), resume=resume)
    try:
        return _carry_out(recipe, folder, resume, progress)
    except OSError as error:
        raise explain_disk(error, folder.path) from error
    finally:
        folder.release()


def _carry_out(recipe: Recipe, folder: RunFolder, resume: bool, progress: Progress) -> Run:
    write_json(folder / "environment.json", environment(recipe))
    state = folder.progress()
    stages = recipe.staged()
    student, teacher, built = None, None, None
    for i, (name, stage) in enumerate(stages):
        multiple = len(stages) > 1
        checkpoints = folder / "checkpoints" / name if multiple else folder / "checkpoints"
        done = state["trained"] or i < state["stage"]
        stopper, report = _StopOnSignal(), _Report(progress)
        built = prepare(
            stage,
            checkpoints,
            student=student,
            teacher=teacher,
            history=folder / "history.jsonl",
            stage=name if multiple else None,
            callbacks=[stopper, report],
        )
        report.trainer = built.trainer
        student, teacher = built.student, built.teacher if built.teacher is not None else teacher
        finished = folder / "stages" / f"{i}-{name}"
        if done:
            verify(finished)
            load_weights(finished, student, nn.ModuleDict())
            continue
        if i == 0:
            write_json(folder / "plan.json", built.plan)
        progress({"event": "plan", "plan": built.plan, "stage": name, "stages": len(stages)})
        _train(built, checkpoints, resume and i == state["stage"], stopper)
        finished.mkdir(parents=True, exist_ok=True)
        save_weights(finished, student, nn.ModuleDict())
        seal(finished)
        folder.set_progress(min(i + 1, len(stages) - 1), i + 1 == len(stages))
    student.requires_grad_(True)
    return _finish(recipe, folder, built, progress)


def _train(built: Prepared, checkpoints: Path, resume: bool, stopper: _StopOnSignal) -> None:
    found = None
    if resume:
        found, refused = newest_valid(checkpoints)
        if found is None and refused:
            raise IntegrityError(
                f"no checkpoint can be resumed: {refused[0]}",
                where=str(checkpoints),
                hint="Start again in a new folder.",
            )
    with stopper:
        built.trainer.train(resume_from_checkpoint=str(found) if found else None)
    if stopper.stopped:
        raise Interrupted(
            f"stopped at step {built.trainer.state.global_step}; a checkpoint was written",
            where=str(checkpoints),
            hint="Go on with --resume.",
        )


def _finish(recipe: Recipe, folder: RunFolder, built: Prepared, progress: Progress) -> Run:
    """Export, measure and report, on the first process."""
    if not built.trainer.is_world_process_zero():
        return Run(folder.path, built.student, {})
    device = built.trainer.args.device
    student = built.student.eval()
    progress({"event": "measure", "what": "export"})
    example = built.source.collator([built.source.split("train")[i] for i in range(2)])
    export_student(student, folder / "student", processor=built.source.processor, batch=example, overwrite=True)
    write_json(folder / "metrics.json", _metrics(recipe, built, progress))
    if recipe.evaluate.shown:
        models = {"teacher": built.teacher, "student": student}
        shown = sample_answers(
            {k: m for k, m in models.items() if m is not None},
            built.source.split(recipe.evaluate.split, recipe.evaluate.samples),
            built.source.collator,
            n=recipe.evaluate.shown,
        )
        write_json(folder / "samples.json", shown)
    student.to(device)
    build_report(folder.path)
    progress({"event": "done", "folder": str(folder.path)})
    return Run(folder.path, student, read_json(folder / "metrics.json"))


def _metrics(recipe: Recipe, built: Prepared, progress: Progress) -> dict[str, Any]:
    section = recipe.evaluate
    dataset = built.source.split(section.split, section.samples)
    common = {"batch_size": section.batch_size, "max_samples": section.samples}
    models = {}
    if built.teacher is not None:
        progress({"event": "measure", "what": "teacher"})
        models["teacher"] = measure(
            built.teacher, role="teacher", dataset=dataset, collator=built.source.collator, **common
        )
    progress({"event": "measure", "what": "student"})
    pairs = [(m["name"], p["student"], p["teacher"]) for m in built.plan["modules"] for p in m["pairs"]]
    models["student"] = measure(
        built.student,
        role="student",
        teacher=built.teacher,
        dataset=dataset,
        collator=built.source.collator,
        pairs=pairs or None,
        **common,
    )
    return {"version": 1, "split": section.split, "samples": section.samples, "models": models}


def evaluate(
    model: str | Path,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    teacher: str | Path | None = None,
    split: str | None = None,
    samples: int | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure a saved model on the data of a recipe; with a teacher also its fidelity."""
    recipe = load_recipe(recipe, overrides)
    section = recipe.evaluate
    source = build_source(recipe)
    dataset = source.split(split or section.split, samples or section.samples)
    return measure(
        load_model(model, where="model"),
        role="student",
        teacher=load_model(teacher, where="teacher") if teacher else None,
        dataset=dataset,
        collator=source.collator,
        batch_size=section.batch_size,
        max_samples=samples or section.samples,
    )


class _StopOnSignal(TrainerCallback):
    """Turns SIGINT and SIGTERM into a checkpoint and an orderly end of training."""

    def __init__(self):
        self.stopped = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame) -> None:
        if self.stopped:  # a second one means: now
            raise KeyboardInterrupt
        self.stopped = True

    def on_step_end(self, args, state, control, **kwargs):
        if self.stopped:
            control.should_save = control.should_training_stop = True
        return control


class _Report(TrainerCallback):
    """Passes steps on to a progress display."""

    def __init__(self, progress: Progress):
        self._progress = progress
        self.trainer: DistillationTrainer | None = None

    def on_step_end(self, args, state, control, **kwargs):
        event = {"event": "step", "step": state.global_step, "steps": state.max_steps}
        if self.trainer is not None:
            event["arm"] = self.trainer.arm_name
        self._progress(event)
