"""A student with the teacher's layers, but narrower ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from potstill.errors import InputError, RecipeError, suggest
from potstill.models.families import family_of
from potstill.models.family_spec import ModuleSpec
from potstill.students.base import STUDENTS, StudentRecord, count_parameters, require_teacher
from potstill.students.configs import changed_config, config_of, new_model, read_field, student_dtype
from potstill.students.copying import Copied, copy_tensors
from potstill.students.depth import (
    Layers,
    check_depths,
    chosen_layers,
    copy_generation_config,
    depth_changes,
    module_specs,
)

Sizes = int | Mapping[str, int]


@STUDENTS.register("width")
def build_width_student(
    teacher: nn.Module,
    width: Sizes,
    *,
    heads: Sizes | None = None,
    ffn: Sizes | None = None,
    layers: Layers | None = None,
    init: str = "random",
    modules: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> tuple[nn.Module, StudentRecord]:
    """Build a student of the teacher's class with narrower layers, and fewer of them if asked.

    Args:
        teacher: A model of a known family. Not changed.
        width: Width of the hidden states of every module, or by module name; modules not named keep theirs. Modules
            that share the field in the configuration (both decoders of CoCa, both stacks of T5) change together.
        heads: Attention heads, likewise; by default as many as keep the teacher's size of a head.
        ffn: Width inside the feed-forward layers, likewise; by default it keeps its ratio to the width. Families
            whose configuration holds the ratio itself (CoCa) take no number here.
        layers: As in the ``depth`` builder; by default all.
        init: ``"random"``: the class's own start. ``"sliced"``: from every teacher tensor the leading rows and columns
            (the first heads, the first hidden units), whole where the shapes agree. Nothing is rescaled: a sum over
            fewer inputs shrinks to about student width / teacher width of its variance, which the norms of a
            transformer largely undo; training does the rest. Stacked query-key-value matrices are sliced one by one.
        modules: As in the ``depth`` builder, with ``width``, ``heads`` and ``ffn`` fields.
        seed: Seed of the random start; the global generator is left as it was.

    Returns:
        The student on the CPU in fp32 (float64 for a float64 teacher), and its record.

    Raises:
        RecipeError: if a module, field or init is unknown.
        InputError: if a width is not positive or larger than the teacher's, cannot be split into heads, modules that
            share a field are given different values, or slicing would cut through heads.
    """
    require_teacher(teacher)
    config = config_of(teacher)
    if init not in ("random", "sliced"):
        raise RecipeError(f'unknown init "{init}"', where="init", hint=suggest(str(init), ("random", "sliced")))
    specs = module_specs(teacher, modules)
    asked = {"width": width, "heads": heads, "ffn": ffn}
    sizes = {what: _by_module(specs, value, what) for what, value in asked.items()}

    changes = _Changes({what for what, value in asked.items() if isinstance(value, Mapping)})
    for name, spec in specs.items():
        _plan(changes, config, spec, {what: by.get(name) for what, by in sizes.items()}, is_sliced=init == "sliced")
    family = family_of(teacher)
    follows = [pair for spec in specs.values() for pair in spec.follows] + list(family.follows if family else ())
    for follower, leader in follows:
        if leader in changes.values and read_field(config, follower) == read_field(config, leader):
            changes.values.setdefault(follower, changes.values[leader])
    kept = chosen_layers(teacher, specs, layers if layers is not None else {})
    fields = {**depth_changes(teacher, specs, kept), **changes.values}

    student = new_model(type(teacher), changed_config(config, fields, "width"), seed, student_dtype(teacher), "width")
    check_depths(student, specs, kept)
    if init == "sliced":
        by_path = {specs[name].blocks: chosen for name, chosen in kept.items()}
        done = copy_tensors(student, teacher, by_path, is_sliced=True)
    else:
        done, kept = Copied(fresh=list(student.state_dict())), {}
    copy_generation_config(student, teacher)
    return student, StudentRecord(
        builder="width",
        arguments={**asked, "layers": layers, "init": init, "modules": modules, "seed": seed},
        student_class=type(student).__name__,
        teacher_class=type(teacher).__name__,
        parameters=count_parameters(student),
        teacher_parameters=count_parameters(teacher),
        layers=kept,
        **dataclasses.asdict(done),
    )


class _Changes:
    """New values of configuration fields, each with the module that asked for it."""

    def __init__(self, by_module: set[str]) -> None:
        self.by_module = by_module
        self.values: dict[str, int] = {}
        self.said_by: dict[str, str] = {}

    def place(self, what: str, module: str) -> str:
        """Where in the recipe the user said it."""
        return f"{what}.{module}" if what in self.by_module else what

    def set(self, path: str, value: int, module: str, what: str) -> None:
        if self.values.get(path, value) != value:
            raise InputError(
                f"{self.said_by[path]} and {module} share the field {path}",
                where=self.place(what, module),
                expected=f"{self.values[path]} like {self.said_by[path]}",
                got=value,
            )
        self.values[path], self.said_by[path] = value, module


def _by_module(specs: Mapping[str, ModuleSpec], value: Sizes | None, what: str) -> dict[str, int]:
    if value is None:
        return {}
    sizes = dict(value) if isinstance(value, Mapping) else dict.fromkeys(specs, value)
    for name, size in sizes.items():
        where = f"{what}.{name}" if isinstance(value, Mapping) else what
        if name not in specs:
            raise RecipeError(f'unknown module "{name}"', where=where, hint=suggest(str(name), specs))
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"not a size for {name}", where=where, expected="an integer, at least 1", got=size)
        if getattr(specs[name], what) is None and isinstance(value, Mapping):
            raise InputError(f"the configuration has no field for the {what} of {name}", where=where)
    return {name: size for name, size in sizes.items() if getattr(specs[name], what) is not None}


def _plan(
    changes: _Changes, config: Any, spec: ModuleSpec, asked: Mapping[str, int | None], *, is_sliced: bool
) -> None:
    """Decide the new fields of one module."""
    if spec.width is None:
        return
    width_t, heads_t, ffn_t = (
        read_field(config, path) if path else None for path in (spec.width, spec.heads, spec.ffn)
    )
    width = asked["width"] if asked["width"] is not None else width_t
    if width > width_t:
        raise InputError(f"the teacher's {spec.name} is {width_t} wide", where=changes.place("width", spec.name),
                         expected=f"1 to {width_t}", got=width)  # fmt: skip
    if asked["width"] is not None:
        changes.set(spec.width, width, spec.name, "width")
    if heads_t is not None and (width != width_t or asked["heads"] is not None):
        _plan_heads(changes, config, spec, width, width_t, heads_t, asked["heads"], is_sliced=is_sliced)
    if asked["ffn"] is not None:
        if is_sliced and isinstance(ffn_t, int) and asked["ffn"] > ffn_t:
            raise InputError(f"the teacher's {spec.name} has {ffn_t} hidden units to slice from",
                             where=changes.place("ffn", spec.name), got=asked["ffn"])  # fmt: skip
        changes.set(spec.ffn, asked["ffn"], spec.name, "ffn")
    elif isinstance(ffn_t, int) and width != width_t:
        changes.set(spec.ffn, max(1, round(ffn_t * width / width_t)), spec.name, "width")


def _plan_heads(
    changes: _Changes,
    config: Any,
    spec: ModuleSpec,
    width: int,
    width_t: int,
    heads_t: int,
    asked: int | None,
    *,
    is_sliced: bool,
) -> None:
    stated = read_field(config, spec.head_dim) if spec.head_dim else None
    size_t = stated if stated is not None else width_t // heads_t
    is_coupled = size_t * heads_t == width_t
    if asked is None and (heads_t * width) % width_t:
        step = width_t // math.gcd(heads_t, width_t)
        below = width // step * step
        near = " or ".join(str(n) for n in (below, below + step) if 0 < n <= width_t)
        raise InputError(
            f"{width} cannot be divided into heads of size {size_t} like the teacher's {spec.name}",
            where=changes.place("width", spec.name), expected=f"a multiple of {step}, such as {near}", got=width,
            hint="Or give heads, the number of heads to divide it into.",
        )  # fmt: skip
    heads = asked if asked is not None else heads_t * width // width_t
    if is_coupled and width % heads:
        raise InputError(
            f"width {width} of {spec.name} cannot be divided into {heads} heads",
            where=changes.place("heads", spec.name),
            expected=f"a divisor of {width}",
            got=heads,
        )
    size = width // heads if is_coupled else size_t
    if is_sliced and (size != size_t or heads > heads_t):
        raise InputError(
            f"slicing keeps heads whole, but {spec.name} would go from {heads_t} heads of size {size_t} to {heads} of "
            f"size {size}",
            where=changes.place("heads", spec.name),
            hint='Leave heads out, or use init: "random".',
        )
    changes.set(spec.heads, heads, spec.name, "heads")
    if stated is not None:
        changes.set(spec.head_dim, size, spec.name, "heads")
    kv_t = read_field(config, spec.kv_heads) if spec.kv_heads else None
    if kv_t is not None:
        kv = kv_t * heads // heads_t if (kv_t * heads) % heads_t == 0 else math.gcd(kv_t, heads)
        moved = next((i for i in range(heads) if i // (heads // kv) != i // (heads_t // kv_t)), None)
        if is_sliced and moved is not None:
            raise InputError(
                f"slicing keeps what each head reads, but head {moved} of {spec.name}, which reads key-value head "
                f"{moved // (heads_t // kv_t)}, would read {moved // (heads // kv)}",
                where=changes.place("width", spec.name),
                hint='Choose another width, or use init: "random".',
            )
        changes.set(spec.kv_heads, kv, spec.name, "heads")
