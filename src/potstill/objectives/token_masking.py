"""Tokens left out of a student's forward pass: layer by layer those that say least of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import InputError, RecipeError, ShapeError
from potstill.losses import redundant_token_mask

_MARK = "_token_masking"


@dataclass
class Kept:
    """What one forward pass of a student kept.

    Attributes:
        places: Number of tokens before anything was dropped; 0 until the first masked layer was reached.
        stages: (layer, places in the full sequence that its input still has, ``(B, n)``), in order.
    """

    places: int = 0
    stages: list[tuple[int, Tensor]] = field(default_factory=list)

    def at(self, layer: int | None = None) -> Tensor | None:
        """Return the places of the tokens inside a layer (None = at the end), or None if all are there."""
        ids = None
        for stage, kept in self.stages:
            if layer is None or stage <= layer:
                ids = kept
        return ids


@dataclass(frozen=True)
class TokenMasking:
    """Drops the most redundant tokens before some layers of a student, in training only.

    Called with a student it is a context manager that yields what is kept; the student is as before once it ends. Two
    objectives with equal settings share one masking. The student's layers must take tokens of any number: positions are
    added before the first of them.

    Args:
        blocks: Path of the list of layers.
        layers: Before which of them tokens are dropped, rising from 0.
        ratios: Share of the sequence without the protected tokens that each of those layers still sees, falling.
        protected: So many tokens at the front (a class token) are always kept.
    """

    blocks: str
    layers: tuple[int, ...]
    ratios: tuple[float, ...]
    protected: int = 1

    def __post_init__(self):
        layers, ratios = self.layers, self.ratios
        if len(layers) != len(ratios) or not layers:
            raise RecipeError(
                "stages and keep_ratios do not pair up", where="keep_ratios", expected=f"{len(layers)}", got=len(ratios)
            )
        if list(layers) != sorted(set(layers)) or layers[0] < 0:
            raise RecipeError("no rising layers from 0", where="stages", got=list(layers))
        if list(ratios) != sorted(ratios, reverse=True) or not all(0 < r <= 1 for r in ratios):
            raise RecipeError("no falling shares in (0, 1]", where="keep_ratios", got=list(ratios))
        if self.protected < 0:
            raise RecipeError("must not be negative", where="protected", got=self.protected)

    @contextmanager
    def __call__(self, student: nn.Module) -> Iterator[Kept]:
        """Drop tokens while the context lasts, if the student is in training mode."""
        kept, handles = Kept(), []
        if not student.training:
            yield kept
            return
        if getattr(student, "is_gradient_checkpointing", False):
            raise InputError(
                "tokens cannot be dropped from layers that are run a second time",
                where="train.gradient_checkpointing",
                hint="Set it to false, or mask_ratio to 0.",
            )
        if getattr(student, _MARK, None) is not None:
            raise InputError(
                "two objectives drop tokens in different ways", hint="Give them the same mask_ratio and stages."
            )
        setattr(student, _MARK, self)
        try:
            for layer, ratio in zip(self.layers, self.ratios):
                block = student.get_submodule(f"{self.blocks}.{layer}")
                hook = partial(self._drop, kept=kept, layer=layer, ratio=ratio)
                handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
            yield kept
        finally:
            delattr(student, _MARK)
            for handle in handles:
                handle.remove()

    def _drop(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, kept: Kept, layer: int, ratio: float
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        tokens = args[0] if args else kwargs["hidden_states"]
        masks = [x for x in (*args[1:], *kwargs.values()) if isinstance(x, Tensor) and x is not tokens]
        if masks:
            raise InputError(
                "the layer is given more than its tokens, which would no longer fit them",
                where=f"{self.blocks}.{layer}",
                got=f"a tensor {list(masks[0].shape)} beside them",
            )
        if not kept.stages:
            kept.places = tokens.shape[1]
        free = kept.places - self.protected
        n_keep = self.protected + max(1, round(ratio * free))
        places = kept.stages[-1][1] if kept.stages else torch.arange(kept.places, device=tokens.device)
        places = places.expand(tokens.shape[0], -1)
        if n_keep < tokens.shape[1]:
            if tokens.shape[1] - self.protected < 2:
                raise ShapeError("too few tokens to choose among", where=f"{self.blocks}.{layer}", got=tokens.shape[1])
            _, chosen = redundant_token_mask(tokens, n_keep, self.protected)
            tokens = tokens.gather(1, chosen.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
            places = places.gather(1, chosen)
        kept.stages.append((layer, places))
        return ((tokens, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": tokens})


def usual_stages(depth: int, mask_ratio: float) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the layers before which tokens are dropped and the shares they see: three stages, all equally large.

    A student of fewer than three layers has as many stages as layers, the last of which sees 1 - mask_ratio.
    """
    if not 0 <= mask_ratio < 1:
        raise RecipeError("must lie in [0, 1)", where="mask_ratio", got=mask_ratio)
    layers = tuple(sorted({0, depth // 3, 2 * depth // 3}))
    return layers, tuple(1 - mask_ratio * (i + 1) / len(layers) for i in range(len(layers)))
