"""Filling in hidden patches: how a masked-image teacher begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.errors import RecipeError, ShapeError
from potstill.objectives.base import OBJECTIVES, Objective, Role, Seen, Where, check_number
from potstill.taps import Signal


@dataclass
class Hidden:
    """What one forward pass did not see.

    Attributes:
        mask: True at hidden patches, ``(N, patches)``; None until the pass has begun.
        channels: Of the images.
    """

    mask: Tensor | None = None
    channels: int = 0


@OBJECTIVES.register("masked_image")
class MaskedImageObjective(Objective):
    """Mean absolute difference between the pixels of hidden patches and what the student's tokens say of them.

    Hidden patches are grey (0), drawn anew for every batch; a linear read-out of the final tokens, a part, fills them
    in. Needs neither labels nor a teacher: for the masked-image teacher of Hybrid Distill, or to warm up an image
    transformer. Every other objective of the stage sees the same hidden patches.

    Args:
        name: Its name in logs.
        tap: The student's final tokens, ``[N, own_tokens + patches, D]``.
        mask_ratio: Share of the patches that is hidden, in (0, 1).
        patch: Side of a patch in pixels; None = as the student's configuration says.
        own_tokens: Tokens before the patches (class token).
        pixels: Batch key of the images, ``[N, C, H, W]``, which the student takes by this name.
        weight: Factor in the loss.
    """

    role: Role = "task"
    loss_name = "masked_image"

    def __init__(
        self,
        name: str,
        tap: str,
        *,
        mask_ratio: float = 0.5,
        patch: int | None = None,
        own_tokens: int = 1,
        pixels: str = "pixel_values",
        weight: float = 1.0,
    ):
        super().__init__(name, weight=weight)
        if not 0 < mask_ratio < 1:
            raise RecipeError("must lie in (0, 1)", where=f"{name}.mask_ratio", got=mask_ratio)
        check_number(own_tokens, f"{name}.own_tokens", 0, whole=True)
        check_number(1 if patch is None else patch, f"{name}.patch", 1, whole=True)
        self.tap, self.mask_ratio, self.patch, self.own_tokens = tap, mask_ratio, patch, own_tokens
        self.pixels, self.student_taps, self.around = pixels, (tap,), self.hide

    def meet(self, student: nn.Module, teachers: Mapping[str, nn.Module]) -> None:
        """Take the side of a patch from the student's configuration."""
        self.patch = self.patch or getattr(getattr(student, "config", None), "patch_size", None)
        if not isinstance(self.patch, int):
            raise RecipeError("the student does not say how large its patches are", where=f"{self.name}.patch")

    @contextmanager
    def hide(self, student: nn.Module) -> Iterator[Hidden]:
        """Hide patches from every forward pass while the context lasts."""
        hidden = Hidden()

        def cover(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            x = kwargs[self.pixels]
            rows, columns = x.shape[-2] // self.patch, x.shape[-1] // self.patch
            number = min(max(1, round(self.mask_ratio * rows * columns)), rows * columns - 1)
            # On the CPU, whose generator every checkpoint holds: a resumed run draws the same.
            hidden.mask = (torch.rand(len(x), rows * columns).argsort(1) < number).to(x.device)
            hidden.channels = x.shape[1]
            cells = hidden.mask.view(-1, 1, rows, columns)
            covered = cells.repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3)
            return args, {**kwargs, self.pixels: x.masked_fill(covered, 0)}

        handle = student.register_forward_pre_hook(cover, with_kwargs=True)
        try:
            yield hidden
        finally:
            handle.remove()

    def build_part(self, student: Signal, teacher: Signal | None) -> nn.Module:
        """Return the read-out of the pixels of a patch."""
        channels = student.notes[self.around].channels
        return nn.Linear(student.tapped[self.tap].shape[-1], channels * self.patch**2)

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """Count the rows."""
        return Where().count(batch)

    def total(self, seen: Seen, part: nn.Module | None) -> Tensor:
        """Sum over rows of the mean over the pixels of their hidden patches."""
        mask = seen.student.notes[self.around].mask
        tokens = seen.student.tapped[self.tap][:, self.own_tokens :]
        if tokens.shape[1] != mask.shape[1]:
            raise ShapeError(
                "there is not one token for each patch", expected=f"{mask.shape[1]} behind {self.own_tokens}",
                got=tokens.shape[1],
            )  # fmt: skip
        target = F.unfold(seen.batch[self.pixels].float(), self.patch, stride=self.patch).transpose(1, 2)
        gaps = (part(tokens).float() - target).abs().mean(-1)
        return (gaps.masked_fill(~mask, 0).sum(1) / mask.sum(1)).sum()
