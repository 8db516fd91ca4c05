"""The objectives on attention maps that a recipe asks for."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

import potstill.losses as losses
from potstill.errors import PotstillError, RecipeError, suggest
from potstill.models.pairing import DistilledModule
from potstill.objectives import AttentionObjective
from potstill.objectives.maps import KINDS
from potstill.recipe.schema import ObjectiveSection
from potstill.taps import Tap, expand_paths, find_attention
from potstill.taps.attention import attention_kinds


def map_losses() -> list[str]:
    """Return the losses of attention maps that an objective can name."""
    functions = [name for name in losses.__all__ if callable(getattr(losses, name))]
    return [n for n in functions if "student_attn" in inspect.signature(getattr(losses, n)).parameters]


def attention_objectives(
    section: ObjectiveSection,
    modules: Sequence[DistilledModule],
    student: nn.Module,
    teacher: nn.Module,
    weight: float,
    where: str,
) -> list[AttentionObjective]:
    """Return one objective for all pairs the section names, or one for every module that has attention of the kind.

    The weights of several are their shares of the pairs: together they are the mean over all pairs.
    """
    shared = {"resize": section.resize, "options": section.options}
    prefix = section.name or section.loss
    loss = getattr(losses, section.loss)
    if section.pairs is not None:
        made = _placed(where, prefix, loss, section.pairs, mask=section.mask, weight=weight, **shared)
        for i, taps in enumerate(made.pairs):
            for model, tap, owner in ((student, taps[0], "student"), (teacher, taps[1], "teacher")):
                (text,) = expand_paths(model, [tap], where=f"{where}.pairs[{i}]", owner=owner)
                path, kind = Tap.parse(text).path, Tap.parse(text).kind
                find_attention(model, path, kind, where=f"{where}.pairs[{i}]")
        return [made]
    chosen = chosen_modules(section, modules, where)
    pairs = {
        m.name: [
            (s, t, kind)
            for s, t in m.pairs[-section.layers :]
            for kind in section.attention or KINDS
            if kind in attention_kinds(student, s) and kind in attention_kinds(teacher, t)
        ]
        for m in chosen
    }
    number = sum(map(len, pairs.values()))
    if not number:
        raise RecipeError(
            "the last layers of these modules have no such attention in both models",
            where=f"{where}.attention" if section.attention else f"{where}.modules",
            got=", ".join(pairs),
            hint="Give pairs: [[student layer, teacher layer, self]].",
        )
    return [
        _placed(
            where,
            f"{prefix}.{m.name}",
            loss,
            pairs[m.name],
            mask=m.mask,
            rows=m.rows,
            module=m.name,
            weight=weight * len(pairs[m.name]) / number,
            **shared,
        )
        for m in chosen
        if pairs[m.name]
    ]


def chosen_modules(section: ObjectiveSection, modules: Sequence[DistilledModule], where: str) -> list[DistilledModule]:
    """Return the modules that an objective of a recipe names, in the order of the model; all if it names none."""
    known = [m.name for m in modules]
    wanted = known if section.modules in (None, "all") else section.modules
    for j, name in enumerate(wanted):
        if name not in known:
            raise RecipeError(f'unknown module "{name}"', where=f"{where}.modules[{j}]", hint=suggest(name, known))
    return [m for m in modules if m.name in wanted]


def _placed(where: str, name: str, *args: Any, **options: Any) -> AttentionObjective:
    """Make an objective; say of an error, which knows its name, where in the recipe it stands."""
    try:
        return AttentionObjective(name, *args, **options)
    except PotstillError as error:
        error.where = where + (error.where or name).removeprefix(name)
        raise
