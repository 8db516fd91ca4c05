"""Filling in hidden patches: how a masked-image teacher begins."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import RecipeError
from potstill.objectives.base import OBJECTIVES, Objective, Role, Seen, Where


@OBJECTIVES.register("masked_image")
class MaskedImageObjective(Objective):
    """The model's own loss on patches that are hidden from it, drawn anew for every batch.

    For models that take ``bool_masked_pos``, such as ViTForMaskedImageModeling (SimMIM, arXiv 2111.09886): a mean
    absolute difference over the pixels of hidden patches. Needs neither labels nor a teacher. In evaluation such a
    model sees all patches, in order.

    Args:
        name: Its name in logs.
        mask_ratio: Share of the patches that is hidden, in (0, 1).
        weight: Factor in the loss.
    """

    role: Role = "task"
    loss_name = "masked_image"
    batch_coupled = True  # the model's mean is over the hidden patches of the micro-batch

    def __init__(self, name: str, *, mask_ratio: float = 0.5, weight: float = 1.0):
        super().__init__(name, weight=weight)
        if not 0 < mask_ratio < 1:
            raise RecipeError("must lie in (0, 1)", where=f"{name}.mask_ratio", got=mask_ratio)
        self.mask_ratio, self.student_outputs, self.around = mask_ratio, ("loss",), self.hide

    def meet(self, student: nn.Module, teachers: Mapping[str, nn.Module]) -> None:
        """Refuse a student from which no patch can be hidden."""
        if "bool_masked_pos" not in inspect.signature(student.forward).parameters:
            raise RecipeError(
                "no patch can be hidden from this student",
                where="student.architecture",
                expected="a model that takes bool_masked_pos, such as ViTForMaskedImageModeling",
                got=type(student).__name__,
            )

    @contextmanager
    def hide(self, student: nn.Module) -> Iterator[None]:
        """Hide patches from every forward pass while the context lasts."""
        size, patch = student.config.image_size, student.config.patch_size
        patches = (size // patch) ** 2
        hidden = min(max(1, round(self.mask_ratio * patches)), patches - 1)

        def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            pixels = args[0] if args else kwargs["pixel_values"]
            # On the CPU, whose generator every checkpoint holds: a resumed run draws the same.
            order = torch.rand(len(pixels), patches).argsort(1)
            return args, {**kwargs, "bool_masked_pos": (order < hidden).to(pixels.device)}

        handle = student.register_forward_pre_hook(add, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """Count the rows."""
        return Where().count(batch)

    def total(self, seen: Seen, part: nn.Module | None) -> Tensor:
        """Weigh the model's mean by the rows of the micro-batch."""
        loss = seen.student.outputs["loss"].float()
        return loss * self.count(seen.batch).to(loss)
