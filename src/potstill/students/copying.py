"""Copying a teacher's tensors into a student of the same class, whole or by leading slices."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

# Several projections stacked in one matrix: each is sliced for itself.
_FUSED = re.compile(r"(^|\.)(in_proj_|c_attn\.|qkv\.)(weight|bias)$")


@dataclass
class Copied:
    """Names of student tensors by what happened to them."""

    copied: list[str] = field(default_factory=list)
    sliced: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)


@torch.no_grad()
def copy_tensors(
    student: nn.Module,
    teacher: nn.Module,
    layers: Mapping[str, Sequence[int]] | None = None,
    *,
    is_sliced: bool = False,
) -> Copied:
    """Fill a student with the teacher's tensors of the same name.

    Args:
        student: Changed in place.
        teacher: Read only.
        layers: For each list of blocks (path), the teacher block that each student block is copied from. Lists not
            named are copied position by position.
        is_sliced: Take the leading slice of a larger teacher tensor; otherwise a tensor of another shape stays as it
            is in the student.

    Returns:
        What was copied, sliced and left with its random start.
    """
    source = teacher.state_dict()
    done = Copied()
    for name, tensor in student.state_dict().items():
        names = _teacher_names(name, layers or {})
        value = next((source[n] for n in names if n in source), None)
        if value is None or value.dim() != tensor.dim():
            done.fresh.append(name)
        elif value.shape == tensor.shape:
            tensor.copy_(value)
            done.copied.append(name)
        elif is_sliced and all(n_s <= n_t for n_s, n_t in zip(tensor.shape, value.shape)):
            axis, parts = _stacked(name, source)
            tensor.copy_(leading_slice(value, tensor.shape, axis, parts))
            done.sliced.append(name)
        else:
            done.fresh.append(name)
    return done


def leading_slice(tensor: torch.Tensor, shape: Sequence[int], axis: int = 0, parts: int = 1) -> torch.Tensor:
    """Return the first rows, columns, ... of a tensor.

    Args:
        tensor: The large tensor.
        shape: The small shape, as many axes, none longer.
        axis: Axis along which several matrices are stacked.
        parts: How many; from each the leading part is taken, so that queries stay queries and keys keys.

    Returns:
        A new tensor of the small shape.
    """
    pieces = [
        piece[tuple(slice(n // parts if i == axis else n) for i, n in enumerate(shape))]
        for piece in tensor.chunk(parts, dim=axis)
    ]
    return torch.cat(pieces, dim=axis) if parts > 1 else pieces[0].clone()


def _teacher_names(name: str, layers: Mapping[str, Sequence[int]]) -> list[str]:
    """Where a student's tensor may come from: the chosen teacher block, else the block of the same position.

    The second is for what only some blocks have: T5 keeps the position bias of the whole stack in block 0.
    """
    for blocks, chosen in layers.items():
        match = re.match(rf"{re.escape(blocks)}\.(\d+)\.(.+)", name)
        if match:
            return [f"{blocks}.{chosen[int(match.group(1))]}.{match.group(2)}", name]
    return [name]


def _stacked(name: str, source: Mapping[str, torch.Tensor]) -> tuple[int, int]:
    """The axis along which projections are stacked in this tensor, and how many they are."""
    if not _FUSED.search(name):
        return 0, 1
    weight = re.sub(r"bias$", "weight", name)
    weight = source.get(weight, source.get(name))
    if weight is None or weight.dim() != 2:
        return 0, 1
    axis = 0 if weight.shape[0] >= weight.shape[1] else 1
    parts = weight.shape[axis] // weight.shape[1 - axis]
    return (0 if name.endswith("bias") else axis), parts
