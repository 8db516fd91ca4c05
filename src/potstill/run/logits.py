"""Whether the logits of a run are ever whole: decided once, from what they would weigh and who reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from potstill.data.generation import as_if_written
from potstill.data.sources import fetch
from potstill.errors import InputError
from potstill.losses.fused import BUDGET
from potstill.models.output_head import OutputHead, find_output_head
from potstill.objectives import Objective
from potstill.taps import expand_paths
from potstill.taps.inputs import is_label
from potstill.teachers import LiveTeacher
from potstill.train import DistillModule

MIB = 2**20
# What whole logits take in all, by element: losses work in float32 whatever the models do, and hold the teacher's, the
# log-softmaxes of both, their exponentials and the gradient beside them (benchmarks/fused_losses.py: 9 times as much).
_BYTES = 4 * 9


def leave_out_heads(
    module: DistillModule,
    teachers: Mapping[str, Any],
    batch: Callable[[], Mapping[str, Any]],
    *,
    budget_mb: int | None,
    device: torch.device,
) -> dict[str, Any]:
    """Let output heads rest where whole logits of a micro-batch would take more than the budget.

    Measurements at the end of a run read whole logits all the same.

    Args:
        module: Gets the student's head and the budget, if the head is to rest.
        teachers: By name; the live ones whose logits are compared with the student's get theirs.
        batch: Makes a micro-batch; called only if there is a head that could rest.
        budget_mb: MiB; 0 = never, None = always.
        device: Where the models are tried. They are moved there.

    Returns:
        The plan's entry: "fused", "why", and what is known of "tokens", "vocabulary" and "mib" (in all); and, if fused,
        by teacher, "teachers": why a teacher's logits are whole, or None.
    """
    if budget_mb == 0:
        return {"fused": False, "why": "train.logits_budget_mb is 0"}
    try:
        head = _student_head(module)
        inputs = _on(batch(), device)
        module.to(device)
        shape = _tried(head, module.pick(inputs))
    except InputError as error:
        return {"fused": False, "why": str(error)}
    tokens, size = torch.Size(shape[:-1]).numel(), torch.Size(shape).numel() * _BYTES
    facts = {"tokens": tokens, "vocabulary": shape[-1], "mib": round(size / MIB, 1)}
    weight = f"{tokens:,} tokens x {shape[-1]:,} words take {facts['mib']:,} MiB with their copies"
    if budget_mb is not None and size <= budget_mb * MIB:
        return {"fused": False, "why": f"{weight}, within train.logits_budget_mb", **facts}
    module.head, module.logits_budget = head, BUDGET if budget_mb is None else budget_mb * MIB
    whole: dict[str, str | None] = {}
    for name in module.teacher_names:
        readers = [o for o in module.objectives if name in o.of and o.takes_lazy and o.teacher_outputs]
        if readers:
            whole[name] = _rest_teacher(teachers[name], name, module, readers, inputs, device)
    why = f"{weight}, more than train.logits_budget_mb" if budget_mb is not None else "train.logits_budget_mb is null"
    return {"fused": True, "why": why, **facts, "teachers": whole}


def first_batch(dataset: Any, collator: Callable, size: int, is_written: bool) -> dict[str, Any]:
    """Return the first rows of a data set as a micro-batch."""
    batch = collator(fetch(dataset, range(min(size, len(dataset)))))
    return as_if_written(batch) if is_written else batch


def _student_head(module: DistillModule) -> OutputHead:
    """Return the student's head, or say why it cannot rest: by what is known without running anything."""
    lazy = dict.fromkeys(o.on for o in module.objectives if o.takes_lazy)
    if not lazy:
        raise InputError("no objective can compute its loss some rows at a time")
    balanced = next((o for o in module.objectives if o.balanced), None)
    if balanced is not None:
        raise InputError(f'"{balanced.name}" is weighed by the gradient of each objective alone')
    heads, reasons = [], []
    for name in lazy:
        try:
            heads.append(find_output_head(module.student, name))
        except InputError as error:
            reasons.append(error)
    if not heads:
        raise reasons[0]
    if len(heads) > 1:
        raise InputError(f"objectives read several outputs: {', '.join(lazy)}")
    head = heads[0]
    _refuse_readers(head, module.student, module.objectives, [o.student_outputs for o in module.objectives],
                    [t for o in module.objectives for t in o.student_taps])  # fmt: skip
    return head


def _refuse_readers(
    head: OutputHead, model: nn.Module, objectives: list[Objective], outputs: list[tuple[str, ...]], taps: list[str]
) -> None:
    for objective, names in zip(objectives, outputs):
        if head.output in names and not objective.takes_lazy:
            raise InputError(f'the objective "{objective.name}" reads whole {head.output}')
    for path in expand_paths(model, taps, where="taps") if taps else ():
        path = path.partition("@")[0]
        if head.path == path or head.path.startswith(f"{path}."):
            raise InputError(f'"{path}", where logits are made, is tapped')


def _tried(head: OutputHead, inputs: Mapping[str, Any]) -> tuple[int, ...]:
    labels = [key for key in inputs if is_label(key)]
    if labels:
        raise InputError(f'{type(head.model).__name__} is given "{labels[0]}", and makes a loss of its own from logits')
    return head.verify(inputs)


def _rest_teacher(
    teacher: Any,
    name: str,
    module: DistillModule,
    readers: list[Objective],
    inputs: Mapping[str, Any],
    device: torch.device,
) -> str | None:
    """Let a teacher's head rest, or return why it does not: the student's may all the same."""
    if not isinstance(teacher, LiveTeacher):
        return "its signal does not come from a model"
    own = [o for o in module.objectives if name in o.of]
    try:
        outputs = dict.fromkeys(n for o in readers for n in o.teacher_outputs)
        if len(outputs) > 1:
            raise InputError(f"objectives read several outputs: {', '.join(outputs)}")
        head = find_output_head(teacher.model, next(iter(outputs)))
        _refuse_readers(head, teacher.model, own, [o.teacher_outputs for o in own], teacher.taps)
        teacher.to(device)
        _tried(head, teacher.pick(inputs))
    except InputError as error:
        return str(error)
    teacher.head = head
    return None


def _on(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
