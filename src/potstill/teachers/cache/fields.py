"""What a cache keeps of the teacher: which outputs and taps, which of their positions, and in what form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from potstill.align.masks import token_mask
from potstill.errors import InputError, RecipeError, ShapeError
from potstill.objectives.base import is_tap
from potstill.taps import Tap

Kind = Literal["top_k", "drawn", "whole"]
STATES = ("fp32", "fp16", "bf16", "int8")
LOG_PROBS = ("fp16", "u8")


@dataclass(frozen=True)
class Field:
    """One output or tap of the teacher, as it is kept.

    Attributes:
        name: Dotted output, or tap in its text form.
        kind: "top_k" (the most likely classes), "drawn" (classes drawn from the teacher) or "whole" (every number).
        codec: Of log-probabilities "fp16" or "u8"; of whole tensors "fp32", "fp16", "bf16" or "int8" with one scale for
            each vector.
        shape: Of the tensor without its batch axis; -1 where it varies from batch to batch: there only the positions
            that ``mask`` counts are kept.
        mask: Key of the batch, as ``token_mask`` reads it; None = all positions are kept.
        shift: Whether position t is kept because of what the mask says of t + 1 (causal models).
        vocab: Number of classes (not "whole").
        k: Classes kept of each position, or number of draws.
        temperatures: At which the mass of the tail is kept.
        logsumexp: Whether the log of the sum of exp(logit) is kept too.
    """

    name: str
    kind: Kind
    codec: str
    shape: tuple[int, ...]
    mask: str | None = None
    shift: bool = False
    vocab: int = 0
    k: int = 0
    temperatures: tuple[float, ...] = ()
    logsumexp: bool = False

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Field:
        """Return the field that a manifest describes; whatever else stands there is a ``TypeError``."""
        given = dict(row)
        for name in ("shape", "temperatures"):
            given[name] = tuple(given.get(name, ()))
        return cls(**given)

    def as_row(self) -> dict[str, Any]:
        """Return what a manifest says of it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @property
    def is_ragged(self) -> bool:
        """True if rows have different numbers of positions."""
        return -1 in self.shape

    @property
    def is_map(self) -> bool:
        """True for attention maps, whose queries and keys may both vary."""
        return is_tap(self.name) and Tap.parse(self.name).is_attention

    @property
    def vector(self) -> int:
        """Numbers that belong together: those of the last axis, or 1 where that varies."""
        return 1 if self.shape[-1] == -1 else self.shape[-1]

    def kept(self, batch: Mapping[str, Any]) -> Tensor | None:
        """Return which positions of a batch are kept, bool ``[B, T]``; None if all are.

        Raises:
            InputError: The batch has no such mask.
        """
        if self.mask is None:
            return None
        mask = token_mask(batch, self.mask)
        if self.shift:
            mask = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)
        return mask

    def vectors_of(self, positions: int) -> int:
        """Return how many vectors a row of so many kept positions has."""
        # Queries, and of a map that varies in both also keys.
        sizes = [positions if n == -1 else n for n in self.shape]
        return math.prod(sizes) // self.vector

    def check(self, value: Any, rows: int) -> None:
        """Refuse what the teacher showed if it is not of this field's shape.

        Raises:
            ShapeError: says what came.
        """
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise InputError("is no tensor of numbers", where=f'field "{self.name}"', got=type(value).__name__)
        fits = value.ndim == len(self.shape) + 1 and len(value) == rows
        if not fits or any(n not in (-1, m) for n, m in zip(self.shape, value.shape[1:])):
            raise ShapeError(
                "changes its shape from batch to batch",
                where=f'field "{self.name}"',
                expected=f"[{rows}, {', '.join('any' if n == -1 else str(n) for n in self.shape)}]",
                got=list(value.shape),
                hint="Only outputs with one row for each sample can be kept; texts need a mask, such as that of an "
                "objective.",
            )


def shape_of(name: str, value: Tensor, mask: Tensor | None) -> tuple[int, ...]:
    """Return the shape of a field by one batch: -1 on the axes that the mask counts.

    Args:
        name: Output or tap.
        value: What the teacher showed, ``[B, ...]``.
        mask: Which positions are to be kept, ``[B, T]``; None = all.

    Raises:
        ShapeError: The mask does not fit.
    """
    shape = list(value.shape[1:])
    if mask is None:
        return tuple(shape)
    is_map = is_tap(name) and Tap.parse(name).is_attention
    T = mask.shape[1] if mask.ndim == 2 else None
    at = 1 if is_map else 0
    if T is None or len(shape) <= at or shape[at] != T or len(mask) != len(value):
        raise ShapeError(
            "the mask does not fit what the teacher shows",
            where=f'field "{name}"',
            expected=f"one entry for each position of {list(value.shape)}",
            got=list(mask.shape),
        )
    shape[at] = -1
    # Texts that look at themselves have as many keys as queries; of cross-attention the keys are another sequence.
    if is_map and shape[2] == T and Tap.parse(name).kind != "cross" and Tap.parse(name).index is None:
        shape[2] = -1
    return tuple(shape)


def check_form(k: int, log_probs: str, states: str, draws: int | None) -> None:
    """Refuse settings of a cache that mean nothing.

    Raises:
        RecipeError: names the setting.
    """
    if isinstance(k, bool) or not isinstance(k, int) or not 0 <= k <= 4096:
        raise RecipeError("does not fit", where="k", expected="1 to 4096 classes; 0 = all", got=k)
    if log_probs not in LOG_PROBS:
        raise RecipeError("unknown form", where="log_probs", expected=" or ".join(LOG_PROBS), got=log_probs)
    if states not in STATES:
        raise RecipeError("unknown form", where="states", expected=" or ".join(STATES), got=states)
    if draws is not None and (isinstance(draws, bool) or not isinstance(draws, int) or not 1 <= draws <= 255):
        raise RecipeError("does not fit", where="draws", expected="1 to 255", got=draws)
