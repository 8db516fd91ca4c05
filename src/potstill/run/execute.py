"""Carry out a recipe: prepare, train stage by stage, export, measure, report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers.utils import logging as transformers_logging

from potstill.data.sources import DataSource
from potstill.errors import InputError, IntegrityError, Interrupted, NumericsError, explain_disk
from potstill.recipe import Recipe, load_recipe
from potstill.run.folder import RunFolder
from potstill.run.measure import Run, finish
from potstill.run.planning import imbalance
from potstill.run.prepare import Prepared, Teachers, prepare, with_source
from potstill.run.watch import Progress, ReportSteps, StopOnSignal
from potstill.train.checkpoint import load_weights, newest_valid, save_weights, seal, verify, write_json


def distill(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    source: DataSource | None = None,
    progress: Progress | None = None,
) -> Run:
    """Carry out a recipe.

    Args:
        recipe: Path, name of a packaged recipe, mapping or ``Recipe``.
        out: Run folder; must be empty or new unless ``resume``.
        overrides: ``"train.steps=100"``.
        resume: Go on from the newest complete checkpoint; a run whose training is done is only measured again.
        source: Data made in Python (see ``potstill.data.files_source.source_from_datasets``), in place of what the
            recipe names.
        progress: Called with {"event": "plan" | "step" | "measure" | "note" | "done", ...}.

    Returns:
        The finished run; everything is in its folder too.

    Raises:
        PotstillError: A mistake of the recipe or its files. If training had begun, it can be resumed; else nothing is
            left behind.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was written.
    """
    transformers_logging.set_verbosity_error()
    progress = progress or (lambda event: None)
    folder = RunFolder(out)
    with _explained(folder):
        recipe = with_source(load_recipe(recipe, overrides), source)
        try:
            recipe = folder.open(recipe, resume=resume)
            return _carry_out(recipe, folder, resume, source, progress)
        finally:
            folder.release()


def _carry_out(recipe: Recipe, folder: RunFolder, resume: bool, source: DataSource | None, progress: Progress) -> Run:
    stages = recipe.staged()
    state = folder.progress(len(stages))
    student, teachers, plans = None, Teachers(), []
    for i, (name, stage) in enumerate(stages):
        multiple = len(stages) > 1
        checkpoints = folder / "checkpoints" / name if multiple else folder / "checkpoints"
        finished = folder / "stages" / f"{i}-{name}"
        stopper, report = StopOnSignal(), ReportSteps(progress)
        built = prepare(
            stage,
            checkpoints,
            source=source,
            student=student,
            teachers=teachers.get(stage),
            history=folder / "history.jsonl",
            stage=name if multiple else None,
            nonfinite=folder / "nonfinite" / name if multiple else folder / "nonfinite",
            callbacks=[report, stopper],  # a signal that comes while a step is shown ends the run at that step
        )
        report.trainer = stopper.trainer = built.trainer
        student = built.student
        teachers.keep(built)
        plans.append({**built.plan, "stage": name})
        if i == 0:
            changed = folder.record(recipe, resume=resume)  # only now: what cannot be built leaves nothing behind
            if changed and not state["trained"]:
                progress({"event": "note", "text": _inexact(changed)})
        if state["trained"] or i < state["stage"]:
            _load_finished(finished, student)
            built.student = student = built.trainer.whole_student()
        else:
            if folder.is_writer:
                write_json(folder / "plan.json", {**built.plan, "stages": plans} if multiple else built.plan)
            progress({"event": "plan", "plan": built.plan, "stage": name, "stages": len(stages)})
            if uneven := imbalance(built.plan):
                progress({"event": "note", "text": uneven})
            _train(built, checkpoints, resume and i == state["stage"], stopper, progress)
            built.student = student = built.trainer.whole_student()
            _keep(folder, finished, student, i, len(stages))
        built.close()
    if state["trained"]:
        progress({"event": "note", "text": "training was finished before; measuring again"})
    return finish(recipe, folder, built, progress)


def _load_finished(finished: Path, student: nn.Module) -> None:
    try:
        verify(finished)
    except IntegrityError as error:
        error.hint = "Delete progress.json and resume: the run then goes on from its checkpoints."
        raise
    load_weights(finished, student, nn.ModuleDict())


def _inexact(changed: Sequence[str]) -> str:
    return (
        f"resumed in another environment ({'; '.join(changed)}): the run goes on, but it is not promised to end bit "
        "for bit as it would have without the interruption"
    )


def _train(built: Prepared, checkpoints: Path, resume: bool, stopper: StopOnSignal, progress: Progress) -> None:
    found = None
    if resume:
        found, refused = newest_valid(checkpoints)
        if found is None and refused:
            raise IntegrityError(
                f"no checkpoint can be resumed: {refused[0]}",
                where=str(checkpoints),
                hint="Start again in a new folder.",
            )
        for error in refused:
            progress({"event": "note", "text": f"a damaged checkpoint is passed over ({error})"})
        start = f"going on from {found.name}" if found else "no checkpoint was written yet: starting at step 0"
        progress({"event": "note", "text": start})
    with stopper:
        built.trainer.train(resume_from_checkpoint=str(found) if found else None)
    skipped = sum(
        e["event"] == "skip" and e.get("stage") == built.trainer.history.stage for e in built.trainer.history.events
    )
    if skipped:
        text = f"{skipped} optimiser steps were skipped: a term or gradient was not finite (history.jsonl, nonfinite/)"
        progress({"event": "note", "text": text})
    if built.trainer.on_any_rank(stopper.stopped):
        raise Interrupted(
            f"stopped at step {built.trainer.state.global_step}; a checkpoint was written",
            where=str(checkpoints),
            hint="Go on with --resume.",
        )


def _keep(folder: RunFolder, finished: Path, student: nn.Module, stage: int, stages: int) -> None:
    """Write the student at the end of a stage, unless its last update broke it."""
    for name, parameter in student.named_parameters():
        if not torch.isfinite(parameter).all():
            raise NumericsError(
                f'the last step left NaN or Inf in the student\'s weight "{name}"',
                where=finished.name,
                hint="Start again in a new folder with a lower train.learning_rate.",
            )
    if folder.is_writer:
        finished.mkdir(parents=True, exist_ok=True)
        save_weights(finished, student, nn.ModuleDict())
        seal(finished)
        folder.set_progress(min(stage + 1, stages - 1), stage + 1 == stages)


@contextmanager
def _explained(folder: RunFolder) -> Iterator[None]:
    """Put into our own words what the system refuses: disk, memory, an interruption outside training."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise explain_disk(error, str(folder.path)) from error
    except KeyboardInterrupt:
        if not folder.is_recorded:
            raise
        raise Interrupted("stopped", where=str(folder.path), hint="Go on with --resume.") from None
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        if "PytorchStreamWriter" in text or "iostream error" in text:  # how torch.save reports a full disk
            raise explain_disk(error, str(folder.path)) from error
        if "does not have a deterministic implementation" in text:
            operation = text.split(" does not have")[0]
            raise InputError(
                f"{operation} has no deterministic kernel here",
                where="train.deterministic",
                hint="Set it to false; a resumed run may then differ in the last bits.",
            ) from error
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
            raise InputError(
                "there is not enough memory",
                where="train.batch_size",
                hint="Lower it and raise train.accumulation by the same factor, set train.gradient_checkpointing, "
                "or run the teacher in bf16.",
            ) from error
        raise
