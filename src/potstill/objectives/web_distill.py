"""KD³ in a run: logits, trusted features and a contrast with the restyled image, on images from the web."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import InputError, RecipeError
from potstill.losses import instance_alignment, kd_kl, mix_distribution, weighted_feature_alignment
from potstill.losses._common import check_positive
from potstill.objectives.base import OBJECTIVES, Objective, Seen, Where, check_output, is_tap, read_output
from potstill.students.shared_classifier import SharedClassifier


@OBJECTIVES.register("web_distill")
class WebDistillObjective(Objective):
    """KD, feature alignment and instance alignment on images collected from the web (arXiv 2307.11469).

    For a student with the teacher's classifier (builder shared_classifier) and the selection "web_instances", which
    gives the weights. With ``contrast`` above 0 every batch goes through the student twice, as it is and restyled:
    batch norm then follows both. No label is read. Batch-coupled: under accumulation and on several ranks it is the
    mean over micro-batches, whose images are each other's negatives and lend each other their style.

    Args:
        name: Its name in logs.
        on: The student's logits, ``[n, K]``.
        teacher_on: The teacher's; None = as ``on``.
        features: Tap of the student's projected features, ``[n, d]``; None = before its shared classifier.
        teacher_features: Tap of the teacher's features, ``[n, d]``; None = what its last linear layer is given.
        alignment: Weight of the feature alignment (α).
        contrast: Weight of the instance alignment (β); 0 = no restyled images at all.
        tau: Temperature of the instance alignment.
        temperature: T of the logits.
        style: Both parameters of the Beta distribution that mixes styles.
        pixels: Batch key of the images, ``[n, C, H, W]``, normalised.
        weights: Batch key of how much each image is trusted; None = all alike.
        weight: Factor in the loss.
    """

    loss_name = "web_distill"
    batch_coupled = True

    def __init__(
        self,
        name: str,
        on: str = "logits",
        *,
        teacher_on: str | None = None,
        features: str | None = None,
        teacher_features: str | None = None,
        alignment: float = 1.0,
        contrast: float = 0.1,
        tau: float = 0.5,
        temperature: float = 4.0,
        style: float = 0.1,
        pixels: str = "pixel_values",
        weights: str | None = "sample_weight",
        weight: float = 1.0,
    ):
        super().__init__(name, weight=weight)
        for field, value in (("tau", tau), ("temperature", temperature), ("style", style)):
            check_positive(value, name, field)
        for field, value in (("alignment", alignment), ("contrast", contrast)):
            if not 0 <= value < float("inf"):
                raise RecipeError("must be finite and not negative", where=f"{name}.{field}", got=value)
        self.on, self.teacher_on = on, teacher_on or on
        for field, output in (("on", on), ("teacher_on", self.teacher_on)):
            check_output(output, f"{name}.{field}")
        self.features, self.teacher_features = features, teacher_features
        self.alignment, self.contrast, self.tau, self.temperature = alignment, contrast, tau, temperature
        self.style, self.pixels, self.weights = style, pixels, weights
        self._set_taps()

    def meet(self, student: nn.Module, teachers: Mapping[str, nn.Module]) -> None:
        """Find the features of both models."""
        teacher = teachers[self.of[0]]
        if self.features is None and (self.alignment or self.contrast):
            shared = [path for path, module in student.named_modules() if isinstance(module, SharedClassifier)]
            if not shared:
                raise RecipeError(
                    "the student has no shared classifier to read features before",
                    where=f"{self.name}.features",
                    hint="Build it with shared_classifier, or name a tap with features as wide as the teacher's.",
                )
            self.features = f"{shared[-1]}.projector@output"
        if self.teacher_features is None and self.alignment:
            linear = [path for path, module in teacher.named_modules() if isinstance(module, nn.Linear)]
            if not linear or not linear[-1]:
                raise RecipeError("the teacher has no classifier to read features before",
                                  where=f"{self.name}.teacher_features", expected="a tap")  # fmt: skip
            self.teacher_features = f"{linear[-1]}@input"
        self._set_taps()

    def _set_taps(self) -> None:
        sides = []
        for output, tap in (
            (self.on, self.features if self.alignment or self.contrast else None),
            (self.teacher_on, self.teacher_features if self.alignment else None),
        ):
            names = [name for name in (output, tap) if name is not None]
            sides.append((tuple(n for n in names if not is_tap(n)), tuple(n for n in names if is_tap(n))))
        (self.student_outputs, self.student_taps), (self.teacher_outputs, self.teacher_taps) = sides

    def second_view(self, batch: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return the batch with every image in a style mixed with another's, drawn from torch's own generator."""
        if not self.contrast:
            return None
        if self.pixels not in batch:
            raise RecipeError(f'the batch has no "{self.pixels}"', where=f"{self.name}.pixels")
        x = batch[self.pixels]
        # On the CPU, whose generator every checkpoint holds: a resumed run draws the same.
        shares = torch.full((len(x),), float(self.style))
        lam = torch.distributions.Beta(shares, shares).sample()
        return {**batch, self.pixels: mix_distribution(x, torch.randperm(len(x)), lam)}

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """Count the rows."""
        return Where().count(batch)

    def total(self, seen: Seen, part: nn.Module | None) -> Tensor:
        """Return the mean over the images, weighed by the rows of the micro-batch."""
        views = [seen.student] if seen.second is None else [seen.student, seen.second]
        logits = read_output(seen.teacher, self.teacher_on)
        kept = [kd_kl(read_output(view, self.on), logits, temperature=self.temperature) for view in views]
        total = sum(kept) / len(kept)
        if self.alignment:
            features, target = (
                read_output(seen.student, self.features),
                read_output(seen.teacher, self.teacher_features),
            )
            total = total + self.alignment * weighted_feature_alignment(features, target, self._trust(seen, features))
        if self.contrast:
            pair = [read_output(view, self.features) for view in views]
            total = total + self.contrast * instance_alignment(*pair, temperature=self.tau)
        return total * self.count(seen.batch).to(total)

    def _trust(self, seen: Seen, features: Tensor) -> Tensor:
        if self.weights is None:
            return features.new_ones(len(features))
        if self.weights not in seen.batch:
            raise InputError(
                f'the batch has no "{self.weights}"',
                where=f"{self.name}.weights",
                hint='Select by "web_instances", or set weights to null: all images are then trusted alike.',
            )
        return seen.batch[self.weights]
