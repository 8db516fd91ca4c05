"""From the sections of a recipe to the objects of a run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import potstill.data.digits_source
import potstill.data.emoji_source
import potstill.data.files_source
import potstill.data.scene_source  # noqa: F401 - each registers a data source
import potstill.losses as losses
from potstill.align.projectors import PROJECTORS
from potstill.data.sources import DATA, DataSource
from potstill.errors import PotstillError, RecipeError, suggest
from potstill.models.families import family_of
from potstill.models.load import load_model
from potstill.models.pairing import DistilledModule, resolve_modules
from potstill.objectives import (
    HiddenObjective,
    LabelObjective,
    ModelLossObjective,
    Objective,
    OutputObjective,
    ReadoutObjective,
    SupervisedAttentionObjective,
    Where,
)
from potstill.objectives.base import check_output, is_tap
from potstill.policies import POLICIES, make_arms
from potstill.recipe import Recipe
from potstill.recipe.options import call_with_options
from potstill.recipe.schema import ObjectiveSection, PolicySection, TrainSection
from potstill.run.check import LABEL_LOSSES
from potstill.run.maps import attention_objectives, map_losses
from potstill.students import STUDENTS
from potstill.students import build_student as make_student
from potstill.taps import expand_paths
from potstill.train import DistillationArguments

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_source(recipe: Recipe) -> DataSource:
    """Return the data source the recipe names."""
    section = recipe.data
    builder = DATA.get(section.source, "data.source")
    return call_with_options(builder, section.options, "data", seed=recipe.seed)


def build_teacher(recipe: Recipe) -> nn.Module | None:
    """Load the teacher, or return None for a recipe without one."""
    section = recipe.teacher
    if section is None:
        return None
    try:
        return load_model(
            section.model,
            revision=section.revision,
            sha256=section.sha256,
            dtype=DTYPES[section.dtype],
            allow_pickle=section.allow_pickle,
            allow_remote_code=section.allow_remote_code,
            where="teacher.model",
        )
    except PotstillError as error:
        if not (error.where or "").startswith("teacher"):
            error.where = "teacher.sha256" if error.where == "sha256" else f"teacher.model ({error.where})"
        raise


def build_student(recipe: Recipe, teacher: nn.Module | None, source: DataSource) -> nn.Module:
    """Build the student; a builder that declares a seed or the data's fields gets the run's."""
    section = recipe.student
    declared = inspect.signature(STUDENTS.get(section.builder, "student.builder")).parameters
    arguments = section.options
    if "seed" in declared:
        arguments.setdefault("seed", recipe.seed)
    if "data_fields" in declared:
        arguments["data_fields"] = source.model_fields
    return make_student(section.builder, teacher, arguments)[0]


def build_modules(recipe: Recipe, student: nn.Module, teacher: nn.Module | None) -> list[DistilledModule]:
    """Return the modules to distil; none if no objective asks for their inside or there is no teacher."""
    maps = [o for o in recipe.objectives if o.loss in map_losses() and o.pairs is None]
    if teacher is None or not (maps or any(o.loss == "hidden" for o in recipe.objectives)):
        return []
    spec = None
    if recipe.modules is not None:
        rows = {name: section.model_dump(exclude_none=True) for name, section in recipe.modules.items()}
        # Left out, the mask is the family's; null says that every token counts.
        spec = {
            name: {k: v for k, v in row.items() if k != "mask"}
            | ({} if recipe.modules[name].mask == "auto" else {"mask": recipe.modules[name].mask})
            for name, row in rows.items()
        }
    return resolve_modules(student, teacher, spec, where="modules")


def build_objectives(
    recipe: Recipe,
    student: nn.Module,
    modules: Sequence[DistilledModule],
    batch: Mapping[str, Any],
    teacher: nn.Module | None = None,
) -> dict[str, list[Objective]]:
    """Return the terms of the loss by the recipe path of their section; "hidden" makes one for every module.

    ``batch`` is any batch of the source: masks and labels that it lacks are refused here, and taps of modules that
    student or teacher lacks.
    """
    built: dict[str, list[Objective]] = {}
    for i, section in enumerate(recipe.objectives):
        where = f"objectives[{i}]"
        for field in ("labels", "mask"):
            key = getattr(section, field)
            if key is not None and key not in batch:
                hint = suggest(key, [str(k) for k in batch])
                raise RecipeError(f'the batch has no "{key}"', where=f"{where}.{field}", hint=hint)
        if section.tap is not None:
            expand_paths(student, [section.tap], where=f"{where}.tap", owner="student")
        _check_outputs(section, student, teacher, where)
        built[where] = _objectives_of(section, modules, student, teacher, where)
        for objective in built[where] if section.weight == "auto" else ():
            objective.alpha, objective.against = section.name or section.loss, tuple(section.against or ())
    return built


def _check_outputs(section: ObjectiveSection, student: nn.Module, teacher: nn.Module | None, where: str) -> None:
    """Refuse taps that are none of one module that is there, and logits of models known to return none."""
    of_teacher = section.teacher_on or section.on if section.loss not in LABEL_LOSSES else None
    sides = (
        (student, section.on, f"{where}.on", "student"),
        (teacher, of_teacher, f"{where}.teacher_on" if section.teacher_on else f"{where}.on", "teacher"),
    )
    for model, name, place, owner in sides:
        if model is None or name is None:
            continue
        if is_tap(name):
            check_output(name, place)
            expand_paths(model, [name], where=place, owner=owner)
        elif name == "logits" and (family := family_of(model)) is not None and family.prediction is not None:
            raise RecipeError(
                f"{type(model).__name__} returns no logits",
                where=place,
                expected=f'a tap on them: "{family.prediction}"',
            )


def _objectives_of(
    section: ObjectiveSection,
    modules: Sequence[DistilledModule],
    student: nn.Module,
    teacher: nn.Module | None,
    where: str,
) -> list[Objective]:
    factor = 1.0 if section.weight == "auto" else section.weight
    weight = {"weight": factor}
    if section.loss == "hidden":
        return _hidden(section, modules, factor, where)
    if section.loss in map_losses():
        return attention_objectives(section, modules, student, teacher, factor, where)
    if section.loss == "model_loss":
        return [ModelLossObjective(section.name or "model_loss", **weight)]
    if section.loss in ("readout", "supervised_attention"):
        objective = ReadoutObjective if section.loss == "readout" else SupervisedAttentionObjective
        given = (section.name or section.loss, section.tap, section.labels)
        names = ("name", "tap", "labels")
        return [call_with_options(objective, section.options, where, *given, given=names, **weight)]
    name = section.name or section.on.partition("@")[0].rpartition(".")[2]
    if section.loss == "cross_entropy":
        given, names = (name, section.on, section.labels), ("name", "on", "labels")
        fixed = {"shift": section.shift, **weight}
        return [call_with_options(LabelObjective, section.options, where, *given, given=names, **fixed)]
    return [
        OutputObjective(
            name,
            getattr(losses, section.loss),
            section.on,
            teacher_on=section.teacher_on,
            where=Where(mask=section.mask, labels=section.labels),
            shift=section.shift,
            options=section.options,
            **weight,
        )
    ]


def _hidden(
    section: ObjectiveSection, modules: Sequence[DistilledModule], weight: float, where: str
) -> list[Objective]:
    known = [m.name for m in modules]
    wanted = known if section.modules in (None, "all") else section.modules
    for j, name in enumerate(wanted):
        if name not in known:
            raise RecipeError(f'unknown module "{name}"', where=f"{where}.modules[{j}]", hint=suggest(name, known))
    kinds = ["auto", "none", *PROJECTORS]
    if section.projector not in kinds:
        hint = suggest(section.projector, kinds)
        raise RecipeError(f'unknown projector "{section.projector}"', where=f"{where}.projector", hint=hint)
    prefix = section.name or "hidden"
    return [
        HiddenObjective(
            f"{prefix}.{m.name}",
            m.pairs,
            module=m.name,
            where=Where(mask=m.mask, rows=m.rows),
            projector=section.projector,
            weight=weight,
        )
        for m in modules
        if m.name in wanted
    ]


def build_policy(section: PolicySection | None, modules: Sequence[str], seed: int) -> Any | None:
    """Return the policy over the named modules, or None."""
    if section is None:
        return None
    try:
        arms = make_arms(modules, section.arms)
    except RecipeError as error:
        raise error.at("policy") from None
    policy_class = POLICIES.get(section.name, "policy.name")
    return call_with_options(policy_class, section.options, "policy", arms, given=("arms",), seed=seed)


def build_arguments(
    train: TrainSection, policy: PolicySection | None, *, seed: int, folder: Path, cpu: bool
) -> DistillationArguments:
    """Translate the train section to transformers' arguments."""
    rounds = {}
    if policy is not None:
        rounds = {
            k: getattr(policy, k) for k in ("round_steps", "probe_batches", "reward", "reward_mode", "reward_clip")
        }
        rounds["equal_hidden_weight"] = policy.equal_hidden_weight
    return DistillationArguments(
        output_dir=str(folder),
        max_steps=train.steps,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=train.accumulation,
        learning_rate=train.learning_rate,
        part_learning_rate=train.part_learning_rate,
        lr_scheduler_type="constant_with_warmup" if train.schedule == "constant" else train.schedule,
        warmup_steps=train.warmup_steps,
        optim={"adamw": "adamw_torch", "adafactor": "adafactor", "sgd": "sgd"}[train.optimizer],
        weight_decay=train.weight_decay,
        adam_beta1=train.betas[0],
        adam_beta2=train.betas[1],
        max_grad_norm=train.max_grad_norm,
        on_nonfinite=train.on_nonfinite,
        bf16=train.precision == "bf16",
        fp16=train.precision == "fp16",
        dataloader_num_workers=train.workers,
        dataloader_drop_last=True,
        dataloader_pin_memory=not cpu,
        logging_steps=train.log_every,
        save_strategy="steps",
        save_steps=train.checkpoint_every,
        keep_checkpoints=train.keep_checkpoints,
        shard=train.shard,
        seed=seed,
        data_seed=seed,
        use_cpu=cpu,
        **rounds,
    )


def freeze(student: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze the named modules of the student (``*`` allowed) and thaw the rest."""
    student.requires_grad_(True)
    for path in expand_paths(student, patterns, where="freeze", owner="student"):
        student.get_submodule(path).requires_grad_(False)
