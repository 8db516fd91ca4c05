"""What one forward pass of a model showed: its outputs by name and its tapped tensors by path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from potstill.errors import InputError, suggest
from potstill.taps.taps import Taps


def lookup(outputs: Any, path: str) -> torch.Tensor:
    """Follow a dotted path (``task_logits.vqa``) through a ``ModelOutput``, dict or object to a tensor."""
    value = outputs
    for key in path.split("."):
        nested = value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)
        if nested is None:
            known = value.keys() if isinstance(value, Mapping) else [k for k in vars(value) if not k.startswith("_")]
            raise InputError(f'the model returned no "{key}"', where=f'output "{path}"', hint=suggest(key, known))
        value = nested
    return value


class RestingHead(Protocol):
    """An output head that may be left out of a pass; ``potstill.models.output_head`` has it."""

    output: str

    def resting(self) -> AbstractContextManager[list[torch.Tensor]]:
        """Let the model run without it, and catch what goes into it."""

    def logits(self, caught: list[torch.Tensor]) -> Any:
        """Return what stands for the logits."""


@dataclass
class Signal:
    """Outputs and tapped tensors of one forward pass over one batch.

    Attributes:
        outputs: Dotted output name -> tensor; where an output head was left out, ``LazyLogits`` in its place.
        tapped: Tap -> tensor: hidden states, usually ``[B, T, D]``.
        notes: What an objective's ``around`` had to say of the pass.
    """

    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    tapped: dict[str, torch.Tensor] = field(default_factory=dict)
    notes: dict[Any, Any] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Signal:
        """Return a copy on another device."""
        return Signal(
            {k: v.to(device) for k, v in self.outputs.items()}, {k: v.to(device) for k, v in self.tapped.items()}
        )


def observe(
    model: nn.Module,
    inputs: Mapping[str, Any],
    taps: Taps,
    outputs: Iterable[str],
    tapped: Iterable[str],
    head: RestingHead | None = None,
) -> Signal:
    """Run ``model(**inputs)`` once and return the named outputs and what the named taps saw.

    ``head`` is left out: its output is not computed, and what stands for it can compute it some rows at a time.
    """
    taps.open(tapped)
    try:
        with nullcontext([]) if head is None else head.resting() as caught:
            result = model(**inputs)
        seen = taps.close()
    except BaseException:
        taps.discard()
        raise
    lazy = {} if head is None else {head.output: head}
    return Signal({n: lazy[n].logits(caught) if n in lazy else lookup(result, n) for n in outputs}, seen)
