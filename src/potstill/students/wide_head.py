"""A student with several output units for each class, as LELP trains it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from potstill.errors import InputError
from potstill.students.base import STUDENTS, StudentRecord, build_inner, count_parameters
from potstill.students.configs import config_of


@torch.no_grad()
def widen_head(linear: nn.Linear, S: int, *, noise: float = 1e-3, seed: int = 0) -> nn.Linear:
    """Return an output layer with S units for every unit of this one: its weights S times, and a little noise.

    The probability of a class, the sum over its units, starts as it was but for the noise; without noise its units
    would stay alike for ever. Unit s of class c stands at c·S + s, as ``lelp_loss`` expects.

    Args:
        linear: The output layer, C units. Not changed.
        S: Units for each class.
        noise: Standard deviation of what is added to the weights.
        seed: Seed of the noise; the global generator is left as it was.

    Returns:
        A layer with C·S units, on the device and in the precision of ``linear``.

    Raises:
        InputError: No linear layer, S below 1, or noise that is negative.

    Source:
        For arXiv 2409.20449, which does not say how its wider layer starts: this start is ours.
    """
    if not isinstance(linear, nn.Linear):
        raise InputError("is no linear layer", where="widen_head", expected="nn.Linear", got=type(linear).__name__)
    if isinstance(S, bool) or not isinstance(S, int) or S < 1:
        raise InputError("no such number of units", where="widen_head.S", expected="at least 1", got=S)
    if not 0 <= noise < float("inf"):
        raise InputError("does not fit", where="widen_head.noise", expected="a finite number from 0", got=noise)
    weight = linear.weight.detach().repeat_interleave(S, 0)
    draws = torch.Generator().manual_seed(seed)
    weight = weight + noise * torch.randn(weight.shape, generator=draws).to(weight)
    wide = nn.Linear(linear.in_features, len(weight), bias=linear.bias is not None, device="meta")
    wide.weight = nn.Parameter(weight)
    if linear.bias is not None:
        wide.bias = nn.Parameter(linear.bias.detach().repeat_interleave(S, 0))
    return wide


@STUDENTS.register("wide_head")
def build_wide_head_student(
    teacher: nn.Module | None,
    of: Mapping[str, Any],
    subclasses: int,
    *,
    head: str | None = None,
    noise: float = 1e-3,
    data_fields: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> tuple[nn.Module, StudentRecord]:
    """Build a classifier by another builder and give it S output units for every class.

    The model returns ``logits`` of the classes, which everything else reads, and ``wide_logits`` of its units, which
    ``lelp_loss`` trains; it is saved and loaded as it is.

    Args:
        teacher: Handed on to the other builder.
        of: The other builder and its options: ``{builder: new, family: vit, ...}``. It has to give a classifier of
            transformers or of Potstill, with as many units as there are classes.
        subclasses: S.
        head: Path of the output layer; None = the one linear layer with as many units as there are classes.
        noise: See ``widen_head``.
        data_fields: Handed on to the other builder, if it takes them.
        seed: Seed of the noise, and of the other builder unless it is given one.

    Returns:
        The student and its record, which is that of the classifier but for the output layer.

    Raises:
        RecipeError: The other builder is unknown or not named, or its options do not fit.
        InputError: The classifier has no such output layer, or S does not fit.
    """
    from potstill.models.pseudo_classes import PseudoClassConfig, PseudoClassModel

    plain, record = build_inner(of, teacher, data_fields, seed)
    path = _head_of(plain, head)
    wide = widen_head(plain.get_submodule(path), subclasses, noise=noise, seed=seed)
    parent, _, last = path.rpartition(".")
    setattr(plain.get_submodule(parent), last, wide)
    config = copy.deepcopy(config_of(plain))
    config.num_labels = wide.out_features
    inner = {**config.to_dict(), "architectures": [type(plain).__name__]}
    with torch.random.fork_rng(devices=[]):  # its own start is written over at once
        student = PseudoClassModel(PseudoClassConfig(inner=inner, subclasses=subclasses))
    student.inner.load_state_dict(plain.state_dict())
    record.builder, record.student_class = "wide_head", type(student).__name__
    record.arguments = {"of": dict(of), "subclasses": subclasses, "head": head, "noise": noise, "seed": seed}
    record.parameters = count_parameters(student)
    changed = {f"{path}.weight", f"{path}.bias"}
    for field in ("copied", "sliced", "fresh"):
        setattr(record, field, [f"inner.{name}" for name in getattr(record, field) if name not in changed])
    record.fresh += [f"inner.{name}" for name, _ in plain.named_parameters() if name in changed]
    return student.train(), record


def _head_of(model: nn.Module, head: str | None) -> str:
    """Return the path of a classifier's output layer."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    units = getattr(config_of(model), "num_labels", None)
    found = [name for name, layer in layers.items() if layer.out_features == units]
    if head is None and len(found) == 1:
        return found[0]
    if head is None or head not in layers:
        raise InputError(
            "which layer is the output layer?" if head is None else "is no linear layer of the classifier",
            where="head",
            expected=", ".join(found) or f"a linear layer with {units} units",
            got=head,
            hint=None if head is None else f"Linear layers: {', '.join(list(layers)[-6:])}.",
        )
    if layers[head].out_features != units:
        raise InputError("has another number of units", where="head", expected=units, got=layers[head].out_features)
    return head
