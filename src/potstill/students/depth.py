"""A student with fewer layers, each a copy of a teacher layer."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from potstill.align.layers import layer_map
from potstill.errors import InputError, RecipeError, suggest
from potstill.models.families import family_of
from potstill.models.family_spec import ModuleSpec
from potstill.models.paths import block_lists, expand_path
from potstill.students.base import STUDENTS, StudentRecord, count_parameters, require_teacher
from potstill.students.configs import changed_config, new_model, read_field, student_dtype
from potstill.students.copying import Copied, copy_tensors

Layers = int | Mapping[str, int | Sequence[int]]


@STUDENTS.register("depth")
def build_depth_student(
    teacher: nn.Module, layers: Layers, *, modules: Mapping[str, Any] | None = None, seed: int = 0
) -> tuple[nn.Module, StudentRecord]:
    """Build a student of the teacher's class with fewer layers, copied evenly and ending on the teacher's last.

    Everything else (embeddings, norms, heads, poolers) is copied too, so the student starts as the teacher with
    layers left out: by far the best start where the width may stay. Modules that are not named keep all layers.

    Args:
        teacher: A model of a known family, or any module with ``modules`` given. Not changed.
        layers: Number of layers of every module; or by module name a number, or the list of teacher layers to keep
            (counted from 0, rising).
        modules: For a model of no known family: the list of blocks of each module, ``{name: path}``. A model that is
            built from a configuration also needs the field that holds the number:
            ``{name: {blocks: path, depth: "num_hidden_layers"}}``.
        seed: Seed of the random start of tensors that the teacher does not have; normally there are none.

    Returns:
        The student in fp32 (float64 for a float64 teacher), on the CPU if it is built from a configuration, all
        parameters trainable; and its record.

    Raises:
        RecipeError: if a module, path or configuration field is unknown.
        InputError: if a number is below 1 or above the teacher's, a list of layers is not rising, or two modules
            that share one depth field are given different depths.

    Source:
        Layer choice as in OPTIMA (arXiv 2310.04550): student layer l takes teacher layer ceil(l · n_t / n_s).
    """
    require_teacher(teacher)
    specs = module_specs(teacher, modules)
    kept = chosen_layers(teacher, specs, layers)
    by_path = {specs[name].blocks: chosen for name, chosen in kept.items()}
    if not hasattr(getattr(teacher, "config", None), "to_dict"):
        student = _cut(teacher, by_path)
        done = Copied(copied=list(student.state_dict()))
    else:
        config = changed_config(teacher.config, depth_changes(teacher, specs, kept), "layers")
        student = new_model(type(teacher), config, seed, student_dtype(teacher), "layers")
        check_depths(student, specs, kept)
        done = copy_tensors(student, teacher, by_path)
        copy_generation_config(student, teacher)
    return student, StudentRecord(
        builder="depth",
        arguments={"layers": layers, "modules": modules, "seed": seed},
        student_class=type(student).__name__,
        teacher_class=type(teacher).__name__,
        parameters=count_parameters(student),
        teacher_parameters=count_parameters(teacher),
        layers=kept,
        **dataclasses.asdict(done),
    )


def module_specs(teacher: nn.Module, modules: Mapping[str, Any] | None) -> dict[str, ModuleSpec]:
    """Return the teacher's modules by name: those given by path, or else those of its family."""
    family = family_of(teacher)
    if modules is None:
        if family is None:
            raise RecipeError(
                f"{type(teacher).__name__} is of no known family",
                where="modules",
                expected="{name: path of a list of blocks}",
                hint=f"It has these lists of blocks: {', '.join(block_lists(teacher)) or 'none'}.",
            )
        return {spec.name: spec for spec in family.modules}
    specs = {}
    for name, entry in modules.items():
        where = f"modules.{name}"
        if isinstance(entry, ModuleSpec):
            spec = entry
        elif isinstance(entry, str):
            spec = ModuleSpec(name, entry, depth=None, width=None, heads=None, ffn=None)
        elif isinstance(entry, Mapping) and "blocks" in entry:
            known = {f.name for f in dataclasses.fields(ModuleSpec)} - {"name"}
            for key in entry:
                if key not in known:
                    raise RecipeError(f'unknown field "{key}"', where=f"{where}.{key}", hint=suggest(str(key), known))
            spec = ModuleSpec(name, **{"depth": None, "width": None, "heads": None, "ffn": None, **entry})
        else:
            raise RecipeError("not a module", where=where, expected="a path, or {blocks: path, ...}", got=entry)
        expand_path(teacher, spec.blocks, side="teacher", where=where)
        if not isinstance(teacher.get_submodule(spec.blocks), (nn.ModuleList, nn.Sequential)):
            raise RecipeError(f'"{spec.blocks}" is no list of blocks', where=where,
                              hint=f"Lists of blocks here: {', '.join(block_lists(teacher)) or 'none'}.")  # fmt: skip
        specs[name] = spec
    return specs


def chosen_layers(teacher: nn.Module, specs: Mapping[str, ModuleSpec], layers: Layers) -> dict[str, list[int]]:
    """Return, for every module of the teacher, the teacher layers that the student keeps."""
    counts = {name: len(teacher.get_submodule(spec.blocks)) for name, spec in specs.items()}
    if isinstance(layers, Mapping):
        for name in layers:
            if name not in specs:
                raise RecipeError(f'unknown module "{name}"', where=f"layers.{name}", hint=suggest(str(name), specs))
        asked = dict(layers)
    else:
        asked = dict.fromkeys(specs, layers)
    kept = {}
    for name, n_t in counts.items():
        wanted = asked.get(name, n_t)
        where = f"layers.{name}" if isinstance(layers, Mapping) else "layers"
        if isinstance(wanted, bool) or not isinstance(wanted, (int, Sequence)) or isinstance(wanted, str):
            raise InputError("not a number of layers", where=where, expected="an integer or a list of them", got=wanted)
        if isinstance(wanted, int):
            if not 1 <= wanted <= n_t:
                raise InputError(
                    f"the teacher's {name} has {n_t} layers", where=where, expected=f"1 to {n_t}", got=wanted
                )
            kept[name] = [j for _, j in layer_map(wanted, n_t)]
            continue
        numbers = list(wanted)
        is_rising = all(a < b for a, b in itertools.pairwise(numbers))
        if not numbers or not is_rising or any(isinstance(n, bool) or not isinstance(n, int) for n in numbers):
            raise InputError("not a choice of layers", where=where, expected="rising integers from 0", got=wanted)
        if numbers[0] < 0 or numbers[-1] >= n_t:
            raise InputError(
                f"the teacher's {name} has layers 0 to {n_t - 1}", where=where, expected="layers among them", got=wanted
            )
        kept[name] = numbers
    return kept


def depth_changes(
    teacher: nn.Module, specs: Mapping[str, ModuleSpec], kept: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """Return the configuration fields that give every module its depth, and its share of what is listed per layer."""
    changes: dict[str, Any] = {}
    said_by: dict[str, str] = {}
    for name, chosen in kept.items():
        spec = specs[name]
        n_t = len(teacher.get_submodule(spec.blocks))
        if spec.depth is None:
            if list(chosen) == list(range(n_t)):
                continue
            fields = [k for k, v in teacher.config.to_dict().items() if v == n_t and not isinstance(v, bool)]
            raise RecipeError(
                "the student is built from a configuration, and it is not known which field holds the depth",
                where=f"modules.{name}",
                expected=f'{{blocks: "{spec.blocks}", depth: field of the configuration}}',
                hint=f"Fields that are {n_t} now: {', '.join(fields) or 'none'}.",
            )
        if spec.depth in changes and changes[spec.depth] != len(chosen):
            raise InputError(
                f"{said_by[spec.depth]} and {name} share the field {spec.depth} and must be equally deep",
                where=f"layers.{name}",
                expected=f"{changes[spec.depth]} layers",
                got=len(chosen),
            )
        changes[spec.depth], said_by[spec.depth] = len(chosen), name
        for path in spec.per_layer:
            listed = read_field(teacher.config, path)
            if isinstance(listed, (list, tuple)) and len(listed) == n_t:
                changes[path] = [listed[i] for i in chosen]
    return changes


def check_depths(student: nn.Module, specs: Mapping[str, ModuleSpec], kept: Mapping[str, Sequence[int]]) -> None:
    """Refuse a student whose class did not make as many layers as its configuration was told."""
    for name, chosen in kept.items():
        made = len(student.get_submodule(specs[name].blocks))
        if made != len(chosen):
            raise RecipeError(
                f'the configuration field "{specs[name].depth}" does not set the depth of {name}',
                where=f"modules.{name}.depth",
                expected=f"{len(chosen)} layers",
                got=made,
            )


def copy_generation_config(student: nn.Module, teacher: nn.Module) -> None:
    """Let the student generate as the teacher does."""
    if getattr(teacher, "generation_config", None) is not None:
        student.generation_config = copy.deepcopy(teacher.generation_config)


def _cut(teacher: nn.Module, by_path: Mapping[str, Sequence[int]]) -> nn.Module:
    """Copy a module that has no configuration, and leave blocks out of the copy."""
    student = copy.deepcopy(teacher).to(student_dtype(teacher)).requires_grad_(True)
    for path, chosen in by_path.items():
        parent, _, last = path.rpartition(".")
        blocks = student.get_submodule(path)
        setattr(student.get_submodule(parent), last, type(blocks)(*_arguments(blocks, chosen)))
    return student


def _arguments(blocks: nn.Module, chosen: Sequence[int]) -> list[Any]:
    left = [blocks[i] for i in chosen]
    return [left] if isinstance(blocks, nn.ModuleList) else left
