"""Two pictures of one sample find each other: how a contrastive teacher begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import ShapeError
from potstill.losses import instance_alignment
from potstill.objectives.base import OBJECTIVES, Objective, Role, Seen, check_number
from potstill.taps import Signal


@OBJECTIVES.register("two_views")
class TwoViewsObjective(Objective):
    """Cross-entropy of telling, by cosine, which second view belongs to which first view, both ways (InfoNCE).

    Needs no teacher, and labels only to count rows: for the contrastive teacher of Hybrid Distill, or to warm up an
    encoder. What the two views share is all that is learned, so the augmentation decides what the features are good
    for. A batch has all samples of the first view, then all of the second (``data: {views: 2}``). It couples the rows
    of a batch: under accumulation and several ranks the other samples are those of the micro-batch; small batches,
    or many samples of one class in a batch, teach little.

    Args:
        name: Its name in logs.
        tap: The student's features, ``[2 B, D]``, or tokens, ``[2 B, L, D]``.
        token: Which of the tokens is the feature; None = their mean.
        width: Of the projection that is compared: a part, two linear layers, dropped after training (SimCLR).
        temperature: The cosines are divided by it.
        rows: Batch key whose length is the number of views, 2 B.
        weight: Factor in the loss.

    Source:
        Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020
        (arXiv 2002.05709), with negatives from the other view only.
    """

    role: Role = "task"
    loss_name = "two_views"
    batch_coupled = True

    def __init__(
        self,
        name: str,
        tap: str,
        *,
        token: int | None = 0,
        width: int = 64,
        temperature: float = 0.2,
        rows: str = "labels",
        weight: float = 1.0,
    ):
        super().__init__(name, weight=weight)
        check_number(0 if token is None else token, f"{name}.token", 0, whole=True)
        check_number(width, f"{name}.width", 1, whole=True)
        check_number(temperature, f"{name}.temperature", 0, is_open=True)
        self.tap, self.token, self.width, self.temperature, self.rows = tap, token, width, float(temperature), rows
        self.student_taps = (tap,)

    def build_part(self, student: Signal, teacher: Signal | None) -> nn.Module:
        """Return the projection whose outputs are compared."""
        d = student.tapped[self.tap].shape[-1]
        return nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.Linear(d, self.width))

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """Count the samples, two views each."""
        rows = batch[self.rows]
        return torch.tensor(len(rows) / 2, dtype=torch.float64, device=rows.device)

    def total(self, seen: Seen, part: nn.Module | None) -> Tensor:
        """Weigh the mean over samples and directions, in nats, by the number of samples."""
        features = self._features(seen.student.tapped[self.tap])
        if len(features) % 2 or len(features) != len(seen.batch[self.rows]):
            raise ShapeError(
                "a batch is not of two views", where=self.name, expected=f"{self.tap} of 2 x B rows, as {self.rows}",
                got=f"{len(features)} and {len(seen.batch[self.rows])}",
            )  # fmt: skip
        samples = len(features) // 2
        projected = part(features)
        if samples < 2:  # nothing to tell apart; DDP waits for the gradient of the projection all the same
            return projected.float().sum() * 0.0
        first, second = projected.chunk(2)
        return instance_alignment(first, second, temperature=self.temperature) * samples

    def _features(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return x
        if x.ndim != 3 or (self.token is not None and self.token >= x.shape[1]):
            raise ShapeError(
                "features do not fit", where=self.name, got=list(x.shape),
                expected="[2 B, D], or tokens [2 B, L, D] with this token among them",
            )  # fmt: skip
        return x.mean(1) if self.token is None else x[:, self.token]
