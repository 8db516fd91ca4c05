"""What is inside a model, and how two models could be paired: the answer to ``potstill inspect``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import nn

from potstill.align.layers import layer_map
from potstill.errors import InputError, ShapeError
from potstill.models.families import family_of
from potstill.models.pairing import resolve_modules
from potstill.models.paths import block_lists


@dataclass(frozen=True)
class Layer:
    """One line of a description: a module at a path.

    Attributes:
        path: Dotted path; empty for the model itself.
        class_name: Its class.
        own: Parameters it holds itself.
        total: Parameters with those of its children; shared ones count once.
        output: Shape of its output on the example batch (of the first tensor, where it returns several); None if
            there was no batch or it was not called.
    """

    path: str
    class_name: str
    own: int
    total: int
    output: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Stack:
    """A stack of blocks that can be distilled as a module.

    Attributes:
        name: The family's name for it, or its path where the family is not known.
        blocks: Path of the list of blocks.
        depth: Number of blocks.
        width: Width of the hidden states; None if neither a configuration nor a batch tells.
        heads: Attention heads; None if the configuration does not tell.
        parameters: Parameters of all blocks.
        mask: Key of the batch with the mask of its tokens.
        output: Shape of the last block's output on the example batch.
    """

    name: str
    blocks: str
    depth: int
    width: int | None
    heads: int | None
    parameters: int
    mask: str | None
    output: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ModelDescription:
    """Everything ``potstill inspect MODEL`` shows."""

    class_name: str
    family: str | None
    parameters: int
    layers: list[Layer]
    stacks: list[Stack]


@dataclass(frozen=True)
class ProposedModule:
    """A pairing that would work: blocks, layers and whether a projector is needed.

    Attributes:
        name: Name of the module.
        student, teacher: The stacks of both sides.
        pairs: ``(student layer, teacher layer)``, counted from 0.
        projector: Kind of projector: "linear" if the widths differ, None if they agree; "unknown" if a width is not
            known without a batch.
    """

    name: str
    student: Stack
    teacher: Stack
    pairs: list[tuple[int, int]]
    projector: str | None


@dataclass(frozen=True)
class Proposal:
    """Modules and layer maps for a student and a teacher.

    Attributes:
        modules: What can be distilled.
        unmatched: Sentences on the stacks that have no partner, and why.
    """

    modules: list[ProposedModule]
    unmatched: list[str] = field(default_factory=list)

    def as_recipe(self) -> dict[str, Any]:
        """Return the ``modules`` section of a recipe that says the same by hand."""
        # ".*" because a path to nn.Sequential, unlike nn.ModuleList, would mean the sequence as one layer.
        return {
            m.name: {
                "student": f"{m.student.blocks}.*",
                "teacher": f"{m.teacher.blocks}.*",
                "map": [list(pair) for pair in m.pairs],
                "mask": m.student.mask,
            }
            for m in self.modules
        }


def describe_model(model: nn.Module, example_batch: Mapping[str, Any] | None = None) -> ModelDescription:
    """List a model's modules with their parameters, and its stacks of blocks.

    Args:
        model: Any module. Its weights, mode and hooks are left as they were.
        example_batch: Keyword arguments of ``forward``; if given, the model is run on it once, in eval mode without
            gradients, and output shapes are listed.

    Returns:
        The description; paths in the order of the model.

    Raises:
        InputError: if the model cannot run the batch; with its reason.
    """
    shapes = {} if example_batch is None else _output_shapes(model, example_batch)
    layers = [
        Layer(
            path,
            type(module).__name__,
            sum(p.numel() for p in module.parameters(recurse=False)),
            sum(p.numel() for p in module.parameters()),
            shapes.get(path),
        )
        for path, module in model.named_modules()
    ]
    family = family_of(model)
    return ModelDescription(
        class_name=type(model).__name__,
        family=family.name if family else None,
        parameters=layers[0].total,
        layers=layers,
        stacks=_stacks(model, shapes),
    )


def propose(
    student: nn.Module,
    teacher: nn.Module,
    student_batch: Mapping[str, Any] | None = None,
    teacher_batch: Mapping[str, Any] | None = None,
) -> Proposal:
    """Propose modules, layer maps and projectors for a pair of models.

    Stacks are paired by name: the family's, or the path for a model of no known family.

    Args:
        student: The student.
        teacher: The teacher.
        student_batch: Keyword arguments of the student's ``forward``, to learn widths no configuration tells.
        teacher_batch: The same for the teacher.

    Returns:
        The proposal. What cannot be paired is listed with the reason, never dropped in silence.
    """
    stacks_s = {s.name: s for s in describe_model(student, student_batch).stacks}
    stacks_t = {s.name: s for s in describe_model(teacher, teacher_batch).stacks}
    modules, unmatched = [], []
    for name, stack_s in stacks_s.items():
        stack_t = stacks_t.get(name)
        if stack_t is None:
            unmatched.append(f"{name} of the student has no partner in the teacher")
            continue
        try:
            pairs = layer_map(stack_s.depth, stack_t.depth)
        except ShapeError as error:
            unmatched.append(f"{name}: {error}")
            continue
        modules.append(ProposedModule(name, stack_s, stack_t, pairs, _projector(stack_s, stack_t)))
    unmatched += [f"{name} of the teacher has no partner in the student" for name in stacks_t if name not in stacks_s]
    proposal = Proposal(modules, unmatched)
    if modules:  # a proposal that the recipe would refuse is worse than none
        resolve_modules(student, teacher, proposal.as_recipe(), "proposal")
    return proposal


def render(subject: ModelDescription | Proposal, *, max_depth: int | None = None) -> Group:
    """Return a description or a proposal as text and tables for ``rich.console.Console.print``.

    Args:
        subject: What to show.
        max_depth: Longest path that is listed, in names; None = all.
    """
    return _render_proposal(subject) if isinstance(subject, Proposal) else _render_model(subject, max_depth)


def _stacks(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> list[Stack]:
    family = family_of(model)
    if family is None:
        found = [(path, path, None, None, None) for path in block_lists(model)]
    else:
        found = [(m.name, m.blocks, m.width, m.heads, m.mask) for m in family.modules]
    stacks = []
    for name, path, width, heads, mask in found:
        blocks = model.get_submodule(path)
        output = shapes.get(f"{path}.{len(blocks) - 1}")
        width = _config_number(model, width)
        if width is None and output:
            width = output[1] if len(output) == 4 else output[-1]
        parameters = sum(p.numel() for p in blocks.parameters())
        stacks.append(Stack(name, path, len(blocks), width, _config_number(model, heads), parameters, mask, output))
    return stacks


def _config_number(model: nn.Module, path: str | None) -> int | None:
    value: Any = getattr(model, "config", None)
    for name in path.split(".") if path else ():
        value = getattr(value, name, None)
    return value if path and isinstance(value, int) else None


def _projector(student: Stack, teacher: Stack) -> str | None:
    if student.width is None or teacher.width is None:
        return "unknown"
    if student.width == teacher.width:
        return None
    return "conv1x1" if student.output and len(student.output) == 4 else "linear"


def _output_shapes(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def note(path: str):
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensor = _first_tensor(output)
            if tensor is not None:
                shapes.setdefault(path, tuple(tensor.shape))

        return hook

    modes = {module: module.training for module in model.modules()}
    handles = [module.register_forward_hook(note(path)) for path, module in model.named_modules()]
    try:
        model.eval()
        with torch.no_grad():
            model(**batch)
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} cannot run the example batch: {error}",
            got=f"keys {', '.join(map(str, batch))}",
            hint="Give the keyword arguments of its forward.",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return shapes


def _first_tensor(output: Any) -> torch.Tensor | None:
    if isinstance(output, torch.Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return next((found for found in map(_first_tensor, values) if found is not None), None)


def _render_model(model: ModelDescription, max_depth: int | None) -> Group:
    family = f"family {model.family}" if model.family else "no known family"
    head = Text(f"{model.class_name}: {model.parameters:,} parameters, {family}")
    stacks = _table("module", "blocks", "layers", "width", "heads", "parameters", "mask", "output")
    for s in model.stacks:
        stacks.add_row(
            s.name, s.blocks, str(s.depth), _cell(s.width), _cell(s.heads), f"{s.parameters:,}", _cell(s.mask),
            _cell(s.output),
        )  # fmt: skip
    paths = _table("path", "class", "own", "total", "output")
    for layer in model.layers:
        if layer.path and (max_depth is None or layer.path.count(".") < max_depth):
            paths.add_row(layer.path, layer.class_name, f"{layer.own:,}", f"{layer.total:,}", _cell(layer.output))
    return Group(head, stacks if model.stacks else Text("No stack of blocks was found."), paths)


def _render_proposal(proposal: Proposal) -> Group:
    table = _table("module", "student", "teacher", "student layer ← teacher layer", "width", "projector")
    for m in proposal.modules:
        pairs = ", ".join(f"{i} ← {j}" for i, j in m.pairs)
        width = f"{_cell(m.student.width)} → {_cell(m.teacher.width)}"
        table.add_row(m.name, m.student.blocks, m.teacher.blocks, pairs, width, m.projector or "none")
    notes = [Text(f"Not paired: {sentence}") for sentence in proposal.unmatched]
    return Group(table if proposal.modules else Text("No modules can be paired."), *notes)


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        is_number = name in ("layers", "width", "heads", "parameters", "own", "total")
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return " × ".join(map(str, value)) if isinstance(value, tuple) else str(value)
