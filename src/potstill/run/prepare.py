"""Build everything a stage needs and probe it on one batch, without writing anything."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from potstill.data.generation import as_if_written
from potstill.data.sources import DataSource
from potstill.errors import InputError, PotstillError, RecipeError
from potstill.models.load import weight_files
from potstill.models.memory import refuse_too_large
from potstill.objectives import Objective
from potstill.objectives.base import TEACHER, is_tap
from potstill.recipe import Recipe, load_recipe
from potstill.recipe.schema import GIVEN, STUDENT, DataSection, TeacherSection
from potstill.run.build import (
    DTYPES,
    build_arguments,
    build_modules,
    build_policy,
    build_rollouts,
    build_selection,
    build_source,
    build_student,
    build_teacher,
    freeze,
)
from potstill.run.caching import check_cached_use, open_cache, place_of, skeleton_of
from potstill.run.check import check_fit, check_names, check_splits
from potstill.run.logits import first_batch, leave_out_heads
from potstill.run.objectives import build_objectives
from potstill.run.planning import make_plan
from potstill.run.vocabularies import check_compared, check_reading
from potstill.teachers import live_teachers
from potstill.teachers.cache import CachedCollator, CachedTeacher, NumberedDataset
from potstill.train import DistillationTrainer, DistillModule


@dataclass
class Prepared:
    """One stage, built and probed, ready to train.

    Attributes:
        recipe: The stage's recipe.
        source: Its data.
        student: What is trained.
        teacher: The model that teaches, or None.
        teachers: All models that teach by name, that one as "teacher".
        trainer: Ready to train.
        plan: What ``plan.json`` says.
    """

    recipe: Recipe
    source: DataSource
    student: nn.Module
    teacher: nn.Module | None
    teachers: dict[str, nn.Module]
    trainer: DistillationTrainer
    plan: dict[str, Any]

    def close(self) -> None:
        """Take all taps off student and teacher."""
        self.trainer.model.close()
        if self.recipe.train.gradient_checkpointing and hasattr(self.student, "disable_input_require_grads"):
            # A hook lets the embeddings ask for a gradient (transformers 5.23), which counting operations trips over.
            self.student.disable_input_require_grads()
        for teacher in self.trainer.teachers.values():
            teacher.close()


def prepare(
    recipe: Recipe,
    folder: Path,
    *,
    source: DataSource | None = None,
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    teachers: Mapping[str, nn.Module] | None = None,
    history: Path | None = None,
    stage: str | None = None,
    nonfinite: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Prepared:
    """Build everything a stage needs and probe it on one batch; nothing is written.

    Args:
        recipe: The stage's recipe (without stages).
        folder: Where checkpoints will go.
        source: The data; None = build what the recipe names.
        student: The student of the stage before; None = build it.
        teacher: The teacher, if it is loaded already.
        teachers: Teachers that are loaded already, by name.
        history: File for the history.
        stage: Name of the stage in the history.
        nonfinite: Folder for batches whose terms or gradients are not finite.
        callbacks: Further callbacks of the Trainer.

    Raises:
        PotstillError: Whatever does not fit, with the path of the field. What can be refused without loading a model
            is refused first.
    """
    check_names(recipe)
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    if recipe.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch refuses cuBLAS without it
        torch.use_deterministic_algorithms(True)
    source = build_source(recipe) if source is None else source
    check_splits(recipe, source)
    loaded = dict(teachers or {}) | ({} if teacher is None else {TEACHER: teacher})
    sections, models, readers = teacher_sections(recipe), {}, {}
    for name, section in sections.items():
        if section.cache is not None:
            models[name] = skeleton_of(section, place_of(name))
            given = loaded.get(name)
            readers[name] = open_cache(
                section, place_of(name), source, models[name], given=None if given is None or is_empty(given) else given
            )
        elif section.model != STUDENT:
            models[name] = loaded[name] if name in loaded else build_teacher(section, place_of(name))
    _check_cached(recipe, readers)
    check_reading(source, models, {name: (place_of(name), sections[name]) for name in models})
    if student is None:
        student = build_student(recipe, _with_weights(recipe, models.get(TEACHER)), source)
    for name, section in sections.items():
        if section.model == STUDENT:
            models[name] = build_teacher(section, place_of(name), student)
        check_fit(models[name], place_of(name), source)
    teacher = models.get(TEACHER)
    check_fit(student, "student", source)
    freeze(student, recipe.freeze)
    modules = build_modules(recipe, student, teacher)
    rollouts = build_rollouts(recipe.rollout, source, recipe.seed)
    example = source.example() if rollouts is None else as_if_written(source.example())
    by_section = build_objectives(recipe, student, modules, example, models)
    check_compared(recipe, source, student, models, by_section)
    with _placed(recipe, by_section):
        module = DistillModule(student, [o for row in by_section.values() for o in row], inputs=recipe.inputs)
    policy = build_policy(recipe.policy, module.modules_named, recipe.seed)
    if recipe.train.gradient_checkpointing:
        if not hasattr(student, "gradient_checkpointing_enable"):
            raise InputError("this student has no gradient checkpointing", where="train.gradient_checkpointing")
        student.gradient_checkpointing_enable({"use_reentrant": False})
    cached = {
        name: CachedTeacher(
            reader,
            outputs=module.outputs_of(name),
            taps=module.taps_of(name),
            mode=sections[name].cache_mode,
            name=name,
        )
        for name, reader in readers.items()
    }
    check_cached_use(by_section, cached, {name: place_of(name) for name in cached})
    live = live_teachers(models | cached, module.outputs_of, module.taps_of, recipe.inputs)
    selection = build_selection(recipe.selection, recipe.seed, source)
    args = build_arguments(
        recipe.train, recipe.policy, seed=recipe.seed, folder=folder, cpu=not torch.cuda.is_available()
    )
    data = source.split("train")
    logits = leave_out_heads(
        module,
        live,
        lambda: first_batch(data, source.collator, recipe.train.batch_size, rollouts is not None),
        budget_mb=recipe.train.logits_budget_mb,
        device=args.device,
    )
    asks_about_all = selection is not None or any(o.surveys for o in module.objectives)
    numbered, collator = (NumberedDataset if cached else lambda dataset: dataset), source.collator
    if cached:
        collator = CachedCollator(collator, {n: (one.reader, one.wanted) for n, one in cached.items()})
    with _placed(recipe, by_section):
        trainer = DistillationTrainer(
            module,
            teacher=live,
            policy=policy,
            selection=selection,
            rollouts=rollouts,
            args=args,
            train_dataset=numbered(data),
            plain_dataset=numbered(source.plain_train()) if asks_about_all else None,
            heldout_dataset=source.split(selection.heldout) if selection is not None and selection.heldout else None,
            data_collator=collator,
            history=history,
            stage=stage,
            nonfinite=nonfinite,
            callbacks=list(callbacks),
        )
    plan = make_plan(recipe, source, student, models, modules, trainer, logits)
    return Prepared(recipe, source, student, teacher, models, trainer, plan)


def teacher_sections(recipe: Recipe) -> dict[str, TeacherSection]:
    """Return the sections of all teachers by name, that of the recipe's own as "teacher"."""
    return ({} if recipe.teacher is None else {TEACHER: recipe.teacher}) | recipe.teachers


def is_empty(model: nn.Module) -> bool:
    """True for a model without weights: what stands for a teacher that is read from its cache."""
    return any(p.is_meta for p in model.parameters())


def _check_cached(recipe: Recipe, cached: Mapping[str, Any]) -> None:
    """Refuse what asks the teacher itself, and one that cannot be loaded when it is measured at the end."""
    if TEACHER not in cached:
        return
    section = recipe.teacher
    if recipe.selection is not None:
        raise RecipeError(
            "the selection asks the teacher itself about samples",
            where="teacher.cache",
            hint="Leave it out, or train without a selection.",
        )
    if recipe.rollout is not None:
        raise RecipeError(
            "texts that the student writes are in no cache",
            where="teacher.cache",
            hint="Leave it out, or train without a rollout.",
        )
    if recipe.evaluate.teacher:
        refuse_too_large(
            weight_files(section.model, revision=section.revision, allow_pickle=section.allow_pickle),
            DTYPES[section.dtype],
            "teacher.model",
            "At the end the teacher is loaded to be measured: set evaluate.teacher: false.",
        )


def _with_weights(recipe: Recipe, teacher: nn.Module | None) -> nn.Module | None:
    """Return the teacher as a builder of students needs it: with its weights, unless it does not look at them."""
    if teacher is None or not is_empty(teacher) or recipe.student.builder in ("new", "pretrained"):
        return teacher
    return build_teacher(recipe.teacher, TEACHER)


class Teachers:
    """Keeps the teachers of the last stage, so that stages with the same ones load them once."""

    def __init__(self):
        self._kept: dict[str, tuple[TeacherSection, nn.Module]] = {}

    def get(self, recipe: Recipe) -> dict[str, nn.Module]:
        """Return by name those of a stage's teachers that are kept; the others have to be loaded."""
        kept = {name: self._kept.get(name, (None, None)) for name in teacher_sections(recipe)}
        return {name: kept[name][1] for name, section in teacher_sections(recipe).items() if kept[name][0] == section}

    def keep(self, built: Prepared) -> None:
        """Keep the teachers of a stage; a copy of the student is one of that stage alone."""
        sections = teacher_sections(built.recipe)
        self._kept = {n: (s, built.teachers[n]) for n, s in sections.items() if s.model != STUDENT}


def plan(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    source: DataSource | None = None,
) -> list[dict[str, Any]]:
    """Return the plan of every stage of a recipe without training or writing anything.

    Args:
        recipe: Path, name of a packaged recipe, mapping or ``Recipe``.
        overrides: ``"train.steps=100"``.
        source: Data made in Python, in place of what the recipe names.
    """
    plans, student, teachers = [], None, Teachers()
    # The Trainer makes its output folder at once, and a plan is to leave nothing behind.
    with tempfile.TemporaryDirectory(prefix="potstill-plan-") as folder:
        for name, stage in with_source(load_recipe(recipe, overrides), source).staged():
            built = prepare(
                stage, Path(folder), source=source, student=student, teachers=teachers.get(stage), stage=name
            )
            built.close()
            student = built.student
            teachers.keep(built)
            plans.append(built.plan)
    return plans


def with_source(recipe: Recipe, source: DataSource | None) -> Recipe:
    """Return the recipe as it is to be written down: its data section says so if the data was given in Python."""
    if source is None:
        return recipe
    for i, stage in enumerate(recipe.stages or ()):
        if stage.data is not None:
            raise RecipeError("the data was given in Python, once for all stages", where=f"stages[{i}].data")
    return recipe.model_copy(update={"data": DataSection(source=GIVEN)})


@contextmanager
def _placed(recipe: Recipe, by_section: Mapping[str, Sequence[Objective]]) -> Iterator[None]:
    """Say of an objective's error, which knows its own name, where in the recipe it stands."""
    try:
        yield
    except PotstillError as error:
        where = error.where or ""
        for (place, objectives), section in zip(by_section.items(), recipe.objectives):
            for one in objectives:
                if where == one.name or where.startswith(f"{one.name}."):
                    rest = where[len(one.name) :].strip(".")
                    error.where = f"{place}.projector" if rest == "projector" else place
                    raise
                for field, names, taps in (
                    ("on", one.student_outputs, one.student_taps),
                    ("teacher_on", one.teacher_outputs, one.teacher_taps),
                ):
                    places = [f'output "{name}"' for name in names]
                    places += [f'tap "{tap}"' for tap in taps if is_tap(tap)]
                    if where in places:
                        is_own = field == "teacher_on" and section.teacher_on is not None
                        error.where = f"{place}.teacher_on" if is_own else f"{place}.on"
                        raise
        raise
