"""Let a run read its teacher from a cache, if the cache is one of this teacher and this data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from potstill.data.sources import DataSource
from potstill.errors import InputError, RecipeError
from potstill.losses import TopK
from potstill.losses._top_k import CACHED_LOSSES, check_cached
from potstill.models.load import hash_weights, load_skeleton, weight_files
from potstill.objectives import Objective, OutputObjective, Where
from potstill.objectives.base import TEACHER
from potstill.recipe.schema import STUDENT, TeacherSection
from potstill.teachers import fingerprint
from potstill.teachers.cache import CachedTeacher, CacheReader, Field
from potstill.teachers.cache.header import compare, config_hash, data_fingerprint, processor_hash
from potstill.teachers.cache.header import refuse_changing as refuse_changing_samples

FULL_MASK = "attention_mask"


def open_cache(
    section: TeacherSection,
    place: str,
    source: DataSource,
    skeleton: nn.Module,
    *,
    given: nn.Module | None = None,
) -> CacheReader:
    """Open the cache that a teacher's section names, if it is one of this teacher and this data.

    Args:
        section: Its ``cache`` is the folder.
        place: Recipe path of the section.
        source: The run's data.
        skeleton: The teacher without its weights.
        given: The teacher itself, if it was given in Python.

    Raises:
        RecipeError: The cache is of another teacher, tokenizer or data; names the field.
        IntegrityError: It is not finished or damaged.
    """
    where = f"{place}.cache"
    reader = CacheReader(section.cache, where)
    dataset = source.split("train")
    teacher = {"config": config_hash(skeleton), "dtype": section.dtype}
    if given is None:
        teacher["files"] = identity_of(section, place)["files"]
    else:
        teacher["weights"] = fingerprint(given)
    compare(reader.header, {"teacher": teacher}, where, RecipeError)
    compare(reader.header, {"tokenizer": processor_hash(source.processor)}, where, RecipeError)
    compare(reader.header, {"data": {"rows": len(dataset)}}, where, RecipeError)
    refuse_changing_samples(dataset, source.collator)
    compare(reader.header, {"data": {"fingerprint": data_fingerprint(dataset, source.collator)}}, where, RecipeError)
    return reader


def skeleton_of(section: TeacherSection, place: str) -> nn.Module:
    """Return a cached teacher without its weights: its modules and configuration are looked at, it is never run."""
    if section.model == STUDENT:
        raise RecipeError("a copy of the student has no cache", where=f"{place}.cache")
    return load_skeleton(
        section.model,
        revision=section.revision,
        allow_remote_code=section.allow_remote_code,
        where=f"{place}.model",
    )


def check_cached_use(
    by_section: Mapping[str, Sequence[Objective]], cached: Mapping[str, CachedTeacher], places: Mapping[str, str]
) -> None:
    """Refuse objectives that cannot take their teacher from its cache.

    Args:
        by_section: Objectives by the recipe path of their section.
        cached: Cached teachers by name.
        places: Recipe path of each teacher.

    Raises:
        RecipeError: says why not and what to do.
    """
    for where, objectives in by_section.items():
        for objective in objectives:
            for name in objective.of if objective.reads_teacher else ():
                if name in cached:
                    _check_objective(objective, cached[name], where, places[name])


def place_of(teacher: str) -> str:
    """Return the recipe path of a teacher's section."""
    return TEACHER if teacher == TEACHER else f"teachers.{teacher}"


def _check_objective(objective: Objective, teacher: CachedTeacher, where: str, place: str) -> None:
    if objective.reads_weights:
        raise RecipeError(
            f"looks at the weights of its teacher, of which {place}.cache holds none",
            where=where,
            hint=f"Leave out {place}.cache: this objective runs its teacher.",
        )
    for name in [*objective.teacher_outputs, *objective.teacher_taps]:
        field = teacher.field(name)
        if field.kind != "whole":
            _check_classes(objective, teacher, field, where)
        if field.is_ragged and (field.mask, field.shift) not in (positions_of(objective), (FULL_MASK, False)):
            wanted, shift = positions_of(objective)
            raise RecipeError(
                f'reads other positions of "{name}" than the cache keeps',
                where=where,
                expected=f'those of "{field.mask}"{", shifted" if field.shift else ""}',
                got=f'those of "{wanted}"{", shifted" if shift else ""}' if wanted else "all",
                hint="Build the cache from this recipe.",
            )


def _check_classes(objective: Objective, teacher: CachedTeacher, field: Field, where: str) -> None:
    if not isinstance(objective, OutputObjective):
        raise RecipeError(
            f'needs every class of "{field.name}", of which the cache keeps {field.k}',
            where=where,
            hint='Build the cache with "--k 0" (all classes), or leave teacher.cache out.',
        )
    empty = torch.zeros(0, 1)
    counts = empty if field.kind == "drawn" else None
    targets = TopK(empty, empty, dict.fromkeys(field.temperatures, empty), field.vocab, counts)
    try:
        check_cached(objective.loss_name, teacher.mode, targets, **objective.options)
    except InputError as error:
        place = f"{where}.loss" if objective.loss_name not in CACHED_LOSSES else where
        told = {"expected": error.expected, "got": error.got, "hint": error.hint}
        raise RecipeError(error.message, where=place, **told) from None
    if objective.options.get("shared_vocab", field.vocab) != field.vocab:
        raise RecipeError(
            "the cache was built with another vocabulary",
            where=f"{where}.shared_vocab",
            expected=str(field.vocab),
            got=objective.options["shared_vocab"],
        )


def positions_of(objective: Objective) -> tuple[str | None, bool]:
    """Return which positions of a sequence an objective reads: key of a mask (None = all), whether it is shifted."""
    where = getattr(objective, "where", None)
    if isinstance(where, Where):
        return where.labels or where.mask, bool(getattr(objective, "shift", False))
    mask = getattr(objective, "mask", None)
    return (mask if isinstance(mask, str) else None), False


def identity_of(section: TeacherSection, place: str) -> dict[str, Any]:
    """Return what tells a teacher's files from others: their hashes, and what the recipe calls it."""
    files = weight_files(
        section.model, revision=section.revision, allow_pickle=section.allow_pickle, where=f"{place}.model"
    )
    return {"model": section.model, "files": hash_weights(files)}
