"""Objectives on hidden states: a module's layers against the teacher's, and a read-out trained on labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from potstill.align.projectors import build_projector
from potstill.errors import RecipeError
from potstill.losses import module_hidden_loss
from potstill.objectives.base import (
    IGNORE_INDEX,
    OBJECTIVES,
    Objective,
    Role,
    Seen,
    Where,
    check_skip,
    refuse_unknown_classes,
)
from potstill.taps import Signal


class HiddenObjective(Objective):
    """Mean squared error between the hidden states of one module's layers and the teacher's, through projectors.

    The hidden term of OPTIMA (arXiv 2310.04550): mean over the layer pairs, over the positions that count and over
    channels. Where widths differ, a bias-free linear map from student to teacher width is learned with the student and
    dropped at export.

    Args:
        name: Its name in logs.
        pairs: (student tap, teacher tap), at least one.
        where: Positions that count.
        module: The module these layers belong to.
        projector: "auto" (only where widths differ), "linear" (always) or "none" (widths must be equal).
        weight: Factor in the loss (α3).
    """

    role: Role = "hidden"
    loss_name = "module_hidden_loss"

    def __init__(
        self,
        name: str,
        pairs: Sequence[tuple[str, str]],
        *,
        module: str,
        where: Where | None = None,
        projector: str = "auto",
        weight: float = 1e-2,
    ):
        super().__init__(name, weight=weight, module=module)
        if not pairs:
            raise RecipeError("no layers to compare", where=name, hint="Give a layer map.")
        self.pairs, self.where, self.projector = list(pairs), where or Where(), projector
        self.student_taps = tuple(dict.fromkeys(s for s, _ in pairs))
        self.teacher_taps = tuple(dict.fromkeys(t for _, t in pairs))

    def build_part(self, student: Signal, teacher: Signal | None) -> nn.Module | None:
        """Return the projectors, one per pair whose widths differ; None if there is none."""
        part = nn.ModuleDict()
        for i, (s, t) in enumerate(self.pairs):
            shape_s, shape_t = student.tapped[s].shape, teacher.tapped[t].shape
            if shape_s[:-1] != shape_t[:-1]:
                raise RecipeError(
                    f'"{s}" of the student and "{t}" of the teacher see different positions',
                    where=self.name,
                    expected=str(tuple(shape_t)),
                    got=tuple(shape_s),
                    hint="Tap layers with equal lengths, or give another map under modules.",
                )
            if self.projector == "none" and shape_s[-1] != shape_t[-1]:
                raise RecipeError(
                    f"widths differ without a projector: student {shape_s[-1]}, teacher {shape_t[-1]}",
                    where=f"{self.name}.projector",
                    hint='Set projector: "auto".',
                )
            kind = "linear" if self.projector == "auto" and shape_s[-1] != shape_t[-1] else self.projector
            if kind not in ("auto", "none"):
                part[str(i)] = build_projector(kind, shape_s, shape_t)
        return part if len(part) else None

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Count tokens under the mask, else rows."""
        return self.where.count(batch)

    def total(self, seen: Seen, part: nn.Module | None) -> torch.Tensor:
        """Sum over positions of the mean over pairs and channels."""
        mask = self.where.mask_of(seen.batch)
        student = [
            part[str(i)](seen.student.tapped[s]) if part is not None and str(i) in part else seen.student.tapped[s]
            for i, (s, _) in enumerate(self.pairs)
        ]
        if mask is not None and not mask.any():
            # Through the projectors too: the other ranks have tokens, and DDP waits for every parameter's gradient.
            return sum(h.float().sum() * 0.0 for h in student)
        teacher = [seen.teacher.tapped[t] for _, t in self.pairs]
        return module_hidden_loss(student, teacher, None, mask) * self.where.count(seen.batch)


@OBJECTIVES.register("readout")
class ReadoutObjective(Objective):
    """Cross-entropy of a linear read-out of hidden states with dense labels: a way to warm up a module.

    The read-out is a part: trained along, never exported. Label maps larger than the grid of tokens are reduced to it:
    a cell counts if a quarter of its pixels have a label, and of several labels it takes the largest.

    Args:
        name: Its name in logs.
        tap: Hidden states ``[N, T, D]``; for label maps T = ``skip`` + rows x columns of the grid.
        labels: Batch key of one label for each token, ``[N, T]`` (fewer labels than tokens are those of the first: a
            model may put tokens of its own behind those of the batch), or of label maps, ``[B, I, H, W]`` or
            ``[N, H, W]``; -100 = does not count.
        classes: Number of classes.
        rows: Batch key of the mask that says which of the ``B x I`` images exist.
        skip: Tokens before the first that has a label, such as the class token of a ViT.
    """

    role: Role = "task"
    loss_name = "readout"

    def __init__(
        self,
        name: str,
        tap: str,
        labels: str,
        classes: int,
        *,
        rows: str | None = None,
        skip: int = 0,
        weight: float = 1.0,
    ):
        super().__init__(name, weight=weight)
        check_skip(skip, name)
        if isinstance(classes, bool) or not isinstance(classes, int) or not 1 <= classes <= 2**24:
            raise RecipeError("no number of classes", where=f"{name}.classes", expected="1 to 2**24", got=classes)
        self.tap, self.labels, self.classes, self.rows, self.skip = tap, labels, classes, rows, skip
        self.student_taps = (tap,)
        self._tokens: int | None = None

    def build_part(self, student: Signal, teacher: Signal | None) -> nn.Module:
        """Return the linear read-out."""
        tokens, width = student.tapped[self.tap].shape[-2:]
        self._tokens = tokens - self.skip
        if self._tokens < 1:
            raise RecipeError(
                "leaves no token", where=f"{self.name}.skip", expected=f"less than {tokens}", got=self.skip
            )
        return nn.Linear(width, self.classes)

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Count the tokens that have a label."""
        return (self._cells(batch) != IGNORE_INDEX).sum(dtype=torch.float64)

    def total(self, seen: Seen, part: nn.Module | None) -> torch.Tensor:
        """Sum the cross-entropy in nats."""
        states, cells = seen.student.tapped[self.tap][..., self.skip :, :], self._cells(seen.batch)
        if seen.batch[self.labels].ndim == 2:
            states = states[:, : cells.shape[1]]
        logits = part(states).float()
        refuse_unknown_classes(cells, self.classes, self.name)
        return F.cross_entropy(logits.flatten(0, -2), cells.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")

    def _cells(self, batch: Mapping[str, Any]) -> torch.Tensor:
        maps = batch[self.labels]
        if maps.ndim == 2:
            return maps
        maps = maps[batch[self.rows] != 0] if self.rows else maps.flatten(0, -3)
        n, height, width = maps.shape
        side = round(self._tokens**0.5)
        if side * side != self._tokens:
            raise RecipeError("the tapped tokens form no square grid", where=self.name, got=f"{self._tokens} tokens")
        if height % side or width % side:
            raise RecipeError(f"a {height}x{width} label map cannot be cut into {side}x{side} cells", where=self.name)
        cells = maps.view(n, side, height // side, side, width // side).transpose(2, 3).flatten(3).flatten(1, 2)
        present = cells != IGNORE_INDEX
        label = cells.amax(-1)  # -100 is smaller than any class
        enough = present.float().mean(-1) >= 0.25
        return torch.where(enough, label, IGNORE_INDEX)
