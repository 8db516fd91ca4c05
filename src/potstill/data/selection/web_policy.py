"""The selection "web_instances": before every epoch, the images from the web that both models trust."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from potstill.data.selection.base import SELECTIONS, Chosen, Pool, SelectionPolicy
from potstill.data.selection.web_instances import select_web_instances
from potstill.errors import InputError

WEIGHT = "sample_weight"


@SELECTIONS.register("web_instances")
class WebInstancePolicy(SelectionPolicy):
    """KD³'s dynamic selection (arXiv 2307.11469): see ``select_web_instances``.

    Both models are asked about the pool without augmentation; the teacher once, as it never changes, the student before
    every epoch. Batches get "sample_weight", the score of each image.

    Args:
        keep_ratio: Share of the pool to keep, in (0, 1].
        threshold: Or all images whose score is at least this.
        balanced: Keep ``keep_ratio`` of every class the teacher sees, not of the pool: no class vanishes.
        warmup_epochs: In so many epochs at the start the teacher alone decides: the student knows nothing yet.
        epoch_samples: Length of an epoch, the same in all; None = what keep_ratio keeps, and with a threshold the size
            of the pool. Fewer images than that are repeated.
        on: Output with the student's logits.
        teacher_on: The teacher's, None = as ``on``.

    Raises:
        InputError: both or neither of keep_ratio and threshold; a number out of range; nothing reaches the threshold.
    """

    keys = (WEIGHT,)

    def __init__(
        self,
        keep_ratio: float | None = None,
        threshold: float | None = None,
        *,
        balanced: bool = False,
        warmup_epochs: int = 1,
        epoch_samples: int | None = None,
        on: str = "logits",
        teacher_on: str | None = None,
    ):
        if (keep_ratio is None) == (threshold is None):
            raise InputError("either keep_ratio or threshold has to be given", where="keep_ratio")
        if keep_ratio is not None and not 0 < keep_ratio <= 1:
            raise InputError("does not fit", where="keep_ratio", expected="a share in (0, 1]", got=keep_ratio)
        if threshold is not None and not 0 <= threshold <= 1:
            raise InputError("does not fit", where="threshold", expected="a probability", got=threshold)
        for field, value, least in (("warmup_epochs", warmup_epochs, 0), ("epoch_samples", epoch_samples, 1)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise InputError("does not fit", where=field, expected=f"a whole number from {least}", got=value)
        if balanced and keep_ratio is None:
            raise InputError("a threshold is the same for all classes", where="balanced", expected="with keep_ratio")
        self.balanced = balanced
        self.keep_ratio, self.threshold, self.warmup_epochs = keep_ratio, threshold, warmup_epochs
        self.epoch_samples, self.on, self.teacher_on = epoch_samples, on, teacher_on
        self._teacher: Tensor | None = None

    def length(self, size: int) -> int:
        """Return how many samples an epoch has."""
        if self.epoch_samples is not None:
            return self.epoch_samples
        return size if self.keep_ratio is None else max(1, math.ceil(self.keep_ratio * size - 1e-9))

    def choose(self, pool: Pool, epoch: int) -> Chosen:
        """Choose the images of an epoch."""
        if self._teacher is None:
            self._teacher = pool.teacher(None)
        student = None if epoch < self.warmup_epochs else pool.student()
        chosen = select_web_instances(
            self._teacher, student, keep_ratio=self.keep_ratio, threshold=self.threshold, balanced=self.balanced
        )
        highest = chosen.scores.max().item()
        if not len(chosen):
            raise InputError(
                "no image is trusted enough",
                where="selection.threshold",
                expected=f"at most {highest:.4f}, the highest score",
                got=self.threshold,
            )
        facts: dict[str, Any] = {
            "highest_score": highest,
            "lowest_score": chosen.weights[-1].item(),
            "mean_score": chosen.scores.mean().item(),
        }
        return Chosen(chosen.indices, {WEIGHT: chosen.weights}, facts)
