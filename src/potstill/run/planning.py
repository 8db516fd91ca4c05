"""What a run is going to do, as data: ``plan.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from potstill.data.sources import DataSource
from potstill.models.pairing import DistilledModule
from potstill.objectives import HiddenObjective
from potstill.objectives.base import TEACHER
from potstill.recipe import Recipe
from potstill.train import DistillationTrainer


def make_plan(
    recipe: Recipe,
    source: DataSource,
    student: nn.Module,
    teachers: Mapping[str, nn.Module],
    modules: Sequence[DistilledModule],
    trainer: DistillationTrainer,
    logits: Mapping[str, Any],
) -> dict[str, Any]:
    """Describe teacher, student, layer maps with shapes, objectives, parts, policy, data and settings."""
    model = trainer.model
    hidden = {o.module: o for o in model.objectives if isinstance(o, HiddenObjective)}
    shapes_s, shapes_t = trainer.shapes
    rows = []
    for module in modules:
        if module.name not in hidden:
            continue
        part = model.part_of(hidden[module.name])
        rows.append(
            {
                "name": module.name,
                "mask": module.mask,
                "pairs": [
                    {
                        "student": s,
                        "teacher": t,
                        "student_shape": shapes_s[s],
                        "teacher_shape": shapes_t[t],
                        "projector": part is not None and str(i) in part,
                    }
                    for i, (s, t) in enumerate(module.pairs)
                ],
            }
        )
    policy = None
    if trainer.policy is not None:
        policy = {
            **recipe.policy.model_dump(),
            **trainer.policy.settings(),
            "arms": trainer.policy.arm_names,
            "rounds": recipe.train.steps // recipe.policy.round_steps,
        }
    return {
        "version": 1,
        "name": recipe.name,
        "steps": recipe.train.steps,
        "teacher": _describe(teachers.get(TEACHER), recipe.teacher.model if recipe.teacher else None),
        "teachers": {name: _describe(teachers[name], section.model) for name, section in recipe.teachers.items()},
        "student": _describe(student, recipe.student.builder),
        "modules": rows,
        "objectives": [
            {**o.describe(), "weight": model.weight_of(o), "start": trainer.start.get(o.name)} for o in model.objectives
        ],
        "parts": [{"name": n, "parameters": _parameters(p)} for n, p in model.parts.items()],
        "untrained": trainer.untrained,
        "logits": dict(logits),
        "policy": policy,
        "selection": recipe.selection.model_dump() if recipe.selection else None,
        "rollout": recipe.rollout.model_dump() if recipe.rollout else None,
        "data": {"source": recipe.data.source, **source.describe()},
        "train": recipe.train.model_dump(),
    }


def imbalance(plan: Mapping[str, Any]) -> str | None:
    """Say so if the terms on hidden states begin heavier than all others together; else None.

    Such a run matches hidden states and little else, and with a policy every change of the arm jerks the student.
    """
    rows = [row for row in plan["objectives"] if row["start"] is not None and not row.get("alpha")]
    hidden = sum(row["weight"] * row["start"] for row in rows if row["role"] == "hidden")
    rest = sum(row["weight"] * row["start"] for row in rows if row["role"] != "hidden")
    if not 0 < rest < hidden:
        return None
    return (
        f"the terms on hidden states begin {hidden / rest:.1f} times as heavy as all others together; "
        f"{rest / hidden / 3:.2g} times their weight would make them a third"
    )


def _describe(model: nn.Module | None, name: str | None) -> dict[str, Any] | None:
    if model is None:
        return None
    return {"model": name, "class": type(model).__name__, "parameters": _parameters(model)}


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
