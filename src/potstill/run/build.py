"""From the sections of a recipe to the objects of a run."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import potstill.data.digits_source
import potstill.data.emoji_source
import potstill.data.files_source
import potstill.data.scene_source
import potstill.data.texts_source  # noqa: F401 - each registers a data source
from potstill.data.generation import CorrectingSampler, OnPolicySampler
from potstill.data.selection import SELECTIONS, SelectionPolicy
from potstill.data.sources import DATA, DataSource
from potstill.errors import PotstillError, RecipeError
from potstill.models.load import load_model
from potstill.models.pairing import DistilledModule, resolve_modules
from potstill.policies import POLICIES, make_arms
from potstill.ranks import process_rank
from potstill.recipe import Recipe
from potstill.recipe.options import call_with_options
from potstill.recipe.schema import (
    STUDENT,
    PolicySection,
    RolloutSection,
    SelectionSection,
    TeacherSection,
    TrainSection,
)
from potstill.run.maps import map_losses
from potstill.students import STUDENTS
from potstill.students import build_student as make_student
from potstill.taps import expand_paths
from potstill.train import DistillationArguments

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_source(recipe: Recipe) -> DataSource:
    """Return the data source the recipe names; a builder that declares ``teacher_model`` gets the teacher's name."""
    section = recipe.data
    builder = DATA.get(section.source, "data.source")
    if "teacher_model" in inspect.signature(builder).parameters:
        named = None if recipe.teacher is None or recipe.teacher.model == STUDENT else recipe.teacher.model
        return call_with_options(builder, section.options, "data", seed=recipe.seed, teacher_model=named)
    return call_with_options(builder, section.options, "data", seed=recipe.seed)


def build_teacher(section: TeacherSection, where: str, student: nn.Module | None = None) -> nn.Module:
    """Load a teacher, or copy the student as it is now if the section says so."""
    if section.model == STUDENT:
        if student is None:
            raise RecipeError(
                "the student is made from the teacher, which is to be a copy of the student",
                where=f"{where}.model",
                hint='Let another stage come first, or use builder: "new" or "pretrained".',
            )
        return copy.deepcopy(student)
    try:
        return load_model(
            section.model,
            revision=section.revision,
            sha256=section.sha256,
            dtype=DTYPES[section.dtype],
            allow_pickle=section.allow_pickle,
            allow_remote_code=section.allow_remote_code,
            where=f"{where}.model",
        )
    except PotstillError as error:
        if not (error.where or "").startswith(where):
            error.where = f"{where}.sha256" if error.where == "sha256" else f"{where}.model ({error.where})"
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


def build_selection(section: SelectionSection | None, seed: int, source: DataSource) -> SelectionPolicy | None:
    """Return the selection policy, or None; one that declares a seed, or the data's domains, gets the run's."""
    if section is None:
        return None
    policy_class = SELECTIONS.get(section.name, "selection.name")
    known = {"seed": seed, "domains": source.facts.get("domains")}
    declared = inspect.signature(policy_class).parameters
    fixed = {name: value for name, value in known.items() if name in declared}
    return call_with_options(policy_class, section.options, "selection", **fixed)


def build_rollouts(section: RolloutSection | None, source: DataSource, seed: int) -> OnPolicySampler | None:
    """Return what has the student write, ending where the data's texts end, or None; each process draws its own."""
    if section is None:
        return None
    tokenizer = source.processor
    end, pad = (getattr(tokenizer, f"{name}_token_id", None) for name in ("eos", "pad"))
    if end is None:
        raise RecipeError(
            "the data has no tokenizer that knows how a text ends", where="rollout", hint="Use a data source of texts."
        )
    own = int(np.random.SeedSequence([seed, process_rank()]).generate_state(1)[0])
    options = section.model_dump()
    corrections = options.pop("corrections")
    sampler = partial(CorrectingSampler, corrections) if corrections else OnPolicySampler
    return sampler(
        **options,
        eos_token_id=end,
        pad_token_id=end if pad is None else pad,
        remade=getattr(source.collator, "remade", None),
        seed=own,
    )


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
        survey_samples=train.survey_samples,
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
