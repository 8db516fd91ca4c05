"""Sharding by FSDP2: every process keeps a share of each parameter, its gradient and its optimiser state.

Everything here that gathers is collective: all processes call it, in the same order.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import get_total_norm

from potstill.errors import InputError
from potstill.taps.taps import expand_paths
from potstill.train.module import DistillModule


def shard(module: DistillModule, blocks: Iterable[str] | None = None, **options: Any) -> DistillModule:
    """Shard a module in place over all processes: the student block by block, then the rest of it, then the parts.

    Call it after ``build_parts`` (a part is made to fit whole tensors) and before the optimiser is made. A plain copy
    of the student without weights is kept, which ``whole_student`` fills in the end.

    Args:
        module: On its device, the same on all processes.
        blocks: Paths in the student (``*`` allowed) that are gathered one at a time; None = what the model names in
            ``_no_split_modules``, else the entries of its module lists.
        options: For ``fully_shard``: ``mesh``, ``mp_policy``, ``offload_policy``, ``reshard_after_forward``.

    Returns:
        The module.

    Raises:
        InputError: The parts have not been built, or the module is sharded already.
    """
    if is_sharded(module):
        raise InputError("the module is sharded already", where="shard")
    if any(o.student_taps for o in module.objectives) and not module.shapes:
        raise InputError("the parts are not built yet", where="shard", hint="Call build_parts first.")
    if "mesh" not in options:
        options["mesh"] = init_device_mesh(next(module.parameters()).device.type, (dist.get_world_size(),))
    module.keep_blank(_without_weights(module))
    if scalars := {p for p in module.parameters() if p.ndim == 0}:
        _replicate(scalars)
        options["ignored_params"] = scalars
    for block in _blocks(module.student, blocks):
        fully_shard(block, **options)
    fully_shard(module.student, **options)
    fully_shard(module, **options)
    return module


def is_sharded(module: nn.Module) -> bool:
    """True if a part of the module is under ``fully_shard``."""
    return any(isinstance(m, FSDPModule) for m in module.modules()) or any(
        isinstance(p, DTensor) for p in module.parameters()
    )


def reshard(module: nn.Module) -> None:
    """Let go of whole parameters that FSDP2 keeps after a pass without backward."""
    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.reshard()


def own_share(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a tensor: all of it if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def apart(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Return the parameters that have a gradient, the plain and the sharded ones apart: torch works on one kind."""
    kinds: dict[bool, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            kinds.setdefault(isinstance(parameter.grad, DTensor), []).append(parameter)
    return list(kinds.values())


def gradient_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """Return the norm of the whole gradient, a plain tensor on every process."""
    norms = [get_total_norm([p.grad for p in kind]) for kind in apart(parameters)]
    return get_total_norm([n.full_tensor() if isinstance(n, DTensor) else n for n in norms])


def whole_state(module: nn.Module, *, on_all: bool = False) -> dict[str, torch.Tensor]:
    """Gather a sharded module's state, tensor by tensor, in the memory of the CPU; shared tensors once.

    Args:
        module: All processes pass it, in the same order. What lies under one ``fully_shard`` belongs together: the
            whole ``DistillModule``, or its ``student`` if that was sharded on its own.
        on_all: Every process keeps the result; else only the first, and others return an empty dictionary.
    """
    reshard(module)
    state = {}
    for name, tensor in _distinct(module).items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if on_all or not dist.is_initialized() or dist.get_rank() == 0:
            state[name] = whole.detach().cpu().contiguous()
    return state


@torch.no_grad()
def load_whole_state(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Give a sharded module its share of a whole state; strict, as ``load_state_dict`` is.

    Raises:
        RuntimeError: A tensor is missing, unexpected or of another shape.
    """
    reshard(module)
    own = module.state_dict(keep_vars=True)
    unexpected = sorted(set(state) - set(own))
    given = {id(own[name]) for name in state if name in own}
    missing = [name for name, tensor in own.items() if id(tensor) not in given]
    if missing or unexpected:
        raise RuntimeError(f"missing: {', '.join(missing[:3]) or '-'}; unexpected: {', '.join(unexpected[:3]) or '-'}")
    for name, value in state.items():
        target = own[name]
        if target.shape != value.shape:
            raise RuntimeError(f"{name}: expected the shape {tuple(target.shape)}, got {tuple(value.shape)}")
        if isinstance(target, DTensor):
            value = value.to(target.device, target.dtype)
            # Every process has read the file: nothing needs to be sent.
            share = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
            target.to_local().copy_(share.to_local())
        else:
            target.copy_(value)


def whole_student(module: DistillModule, into: nn.Module | None = None) -> nn.Module:
    """Return the student as a plain model, to be exported or trained on: itself if it is not sharded.

    Args:
        module: All processes pass it.
        into: A plain model of the same architecture to fill; None = the copy kept by ``shard``.
    """
    if not is_sharded(module):
        return module.student
    into = module.blank if into is None else into
    if into is None:
        raise InputError(
            "there is no plain model to gather the weights into",
            where="whole_student",
            hint="Pass one as into=, or shard with potstill.train.shard.",
        )
    reshard(module)
    ours = module.student.state_dict(keep_vars=True)
    state = whole_state(module.student, on_all=True)
    _give_memory(into)
    theirs = into.state_dict(keep_vars=True)
    given = {id(theirs[name]) for name in state if name in theirs}
    if set(ours) != set(theirs) or any(id(tensor) not in given for tensor in theirs.values()):
        raise InputError("the plain model has other weights than the sharded one", where="whole_student")
    with torch.no_grad():
        for name, value in state.items():
            theirs[name].copy_(value)
            theirs[name].requires_grad_(ours[name].requires_grad)
    return into.to(next(module.parameters()).device).train(module.student.training)


def _blocks(student: nn.Module, patterns: Iterable[str] | None) -> list[nn.Module]:
    """Return the modules to shard on their own, inner ones first; none that shares a parameter with the rest."""
    names = getattr(student, "_no_split_modules", None)
    if patterns is not None:
        chosen = [student.get_submodule(path) for path in expand_paths(student, patterns, where="blocks")]
    elif names:
        chosen = [m for m in student.modules() if type(m).__name__ in names]
    else:
        lists = [m for m in student.modules() if isinstance(m, nn.ModuleList)]
        chosen = [m for each in lists for m in each if not isinstance(m, nn.ModuleList | nn.ModuleDict)]
    uses = Counter(id(p) for m in student.modules() for p in m.parameters(recurse=False))
    order = {id(m): i for i, m in enumerate(student.modules())}
    alone = [m for m in chosen if all(uses[id(p)] == 1 for p in m.parameters()) and any(True for _ in m.parameters())]
    return sorted(dict.fromkeys(alone), key=lambda m: -order[id(m)])


def _replicate(scalars: Iterable[nn.Parameter]) -> None:
    """Average the gradients of what FSDP2 cannot split (the temperature of a contrast, say), so that it stays equal."""
    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise InputError("sharding a model with scalar parameters needs torch 2.7", where="shard")

    def average(parameter: nn.Parameter) -> None:
        # What was averaged in earlier micro-batches is equal everywhere and stays as it is.
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()

    for parameter in scalars:
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(average)


def _without_weights(module: DistillModule) -> nn.Module:
    """Return a copy of the student whose parameters take no memory."""
    student = module.student
    known = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in student.parameters()}
    return copy.deepcopy(student, known)


def _give_memory(model: nn.Module) -> None:
    """Replace parameters without memory by ones that have it; tied ones stay tied."""
    made: dict[int, nn.Parameter] = {}
    for child in model.modules():
        for name, p in child.named_parameters(recurse=False, remove_duplicate=False):
            if p.is_meta:
                new = made.setdefault(id(p), nn.Parameter(torch.empty_like(p, device="cpu"), p.requires_grad))
                child._parameters[name] = new


def _distinct(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the module's state under the first name of every tensor."""
    seen: set[int] = set()
    found = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found
