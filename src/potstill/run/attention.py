"""Which attention maps of a finished run are compared, and what ``attention.json`` says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from potstill.errors import PotstillError
from potstill.evaluate import MapPair, compare_attention
from potstill.models.pairing import DistilledModule, resolve_modules
from potstill.objectives.maps import KINDS, AttentionObjective
from potstill.recipe.schema import EvaluateSection
from potstill.run.build import build_modules
from potstill.run.prepare import Prepared
from potstill.taps import Tap, find_attention
from potstill.taps.attention import attention_kinds

SAMPLES, BATCH, SHOWN = 64, 16, 4


def attention_of(built: Prepared, section: EvaluateSection) -> dict[str, Any]:
    """Return the content of ``attention.json``; what could not be read is said in its notes and stops nothing."""
    student, teacher = built.student, built.teacher
    if built.source.teacher_collator is not built.source.collator:
        return _nothing("Student and teacher read other tokens: their maps cannot be laid over each other.")
    try:
        modules = _modules(built, student, teacher)
        pairs = _asked_for(built) or _last_layers(modules, student, teacher)
        found = compare_attention(
            student,
            teacher,
            pairs,
            built.source.split(section.split, section.samples),
            built.source.collator,
            layers=_further_layers(modules, pairs, student, teacher),
            n=min(SHOWN, section.shown),  # who wants no samples in the folder wants none here either
            max_samples=min(SAMPLES, section.samples),
            batch_size=min(BATCH, section.batch_size),
            inputs=built.recipe.inputs,
        )
    # Of whatever class: a page without these figures is better than a trained run without a page.
    except Exception as error:
        text = " ".join(str(error).split())[:300] or type(error).__name__
        return _nothing(f"Attention maps could not be read ({text}).")
    if not (found["pairs"] or found["distance"] or found["notes"]):
        return _nothing("These models have no attention in common that can be read.")
    return found


def _nothing(note: str) -> dict[str, Any]:
    return {"version": 1, "samples": 0, "notes": [note], "pairs": [], "distance": [], "shown": []}


def _modules(built: Prepared, student: nn.Module, teacher: nn.Module) -> list[DistilledModule]:
    """Return the modules of the run, or those that both models have if its objectives need none."""
    modules = build_modules(built.recipe, student, teacher)
    if modules:
        return modules
    try:
        return resolve_modules(student, teacher)
    except PotstillError:  # models of no known family, or of two that share nothing
        return []


def _asked_for(built: Prepared) -> list[MapPair]:
    """Return the maps that the run's objectives compared, each once."""
    objectives = [o for o in built.trainer.model.objectives if isinstance(o, AttentionObjective)]
    pairs: dict[tuple[str, str], MapPair] = {}
    for objective in objectives:
        for student, teacher in objective.pairs:
            pair = MapPair(
                student,
                teacher,
                name=objective.module or objective.name,
                mask=objective.mask,
                tau=objective.options.get("tau", 1.0),
                resize=objective.resized if objective.resize is not None else None,
            )
            pairs.setdefault((student, teacher), pair)
    return list(pairs.values())


def _last_layers(modules: Sequence[DistilledModule], student: nn.Module, teacher: nn.Module) -> list[MapPair]:
    """Return self- and cross-attention of the last layers of every module."""
    return [
        MapPair(f"{s}@{kind}_attention", f"{t}@{kind}_attention", name=module.name)
        for module in modules
        for s, t in module.pairs[-1:]
        for kind in KINDS
        if _has(student, s, kind) and _has(teacher, t, kind)
    ]


def _further_layers(
    modules: Sequence[DistilledModule], pairs: Sequence[MapPair], student: nn.Module, teacher: nn.Module
) -> list[tuple[str, str, str]]:
    """Return self-attention of matched layers that are in no pair; their distance is taken too."""
    layers = [
        (module.name, f"{s}@self_attention", f"{t}@self_attention")
        for module in modules
        for s, t in module.pairs
        if _has(student, s, "self") and _has(teacher, t, "self")
    ]
    known = {(_path(student, p.student), _path(teacher, p.teacher)) for p in pairs}
    return [row for row in layers if (_path(student, row[1]), _path(teacher, row[2])) not in known]


def _has(model: nn.Module, path: str, kind: str) -> bool:
    """Whether a layer has one attention of a kind that can be read."""
    if kind not in attention_kinds(model, path):
        return False
    try:
        find_attention(model, path, kind)
    except PotstillError:  # several: which one is meant, only an objective can say
        return False
    return True


def _path(model: nn.Module, tap: str) -> str:
    parsed = Tap.parse(tap)
    try:
        return find_attention(model, parsed.path, parsed.kind)
    except (PotstillError, AttributeError):
        return tap
