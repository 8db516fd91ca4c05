"""KD³: a student taught on images from the web, of which only the trusted ones are used."""

from __future__ import annotations

from typing import Any

from torch import nn

from potstill.errors import InputError
from potstill.students.shared_classifier import SharedClassifier, merge_classifier, share_classifier
from potstill.systems.given_models import GIVEN, GivenModels


class WebDistillPipeline(GivenModels):
    """Selects images anew before every epoch, and teaches a student that has the teacher's classifier.

    For a teacher whose training data is gone and a pool collected by class name. The trained student has a plain linear
    classifier again.

    Args:
        student: A model that ends in a linear classifier; it gets the teacher's, unless it has it already.
        teacher: A model that ends in a linear classifier.
        keep_ratio: Share of the pool to keep, 0.5 if no threshold is given.
        threshold: Or all images whose score is at least this.
        warmup_epochs: Epochs in which the teacher alone selects.
        projector: "linear" or "conv", see ``share_classifier``.
        alpha: Weight of the feature alignment.
        beta: Weight of the instance alignment; 0 = no restyled images.
        objective: Further options of "web_distill" (``tau``, ``temperature``, ``style``, ...).
        selection: Further options of "web_instances" (``epoch_samples``, ...).

    Raises:
        InputError: a model without linear classifier.

    Source:
        Tang et al., "Distribution Shift Matters for Knowledge Distillation with Webly Collected Images", ICCV 2023
        (arXiv 2307.11469); ``docs/data/web-images.md`` says what is reconstructed.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        keep_ratio: float | None = None,
        threshold: float | None = None,
        warmup_epochs: int = 1,
        projector: str = "linear",
        alpha: float = 1.0,
        beta: float = 0.1,
        objective: dict[str, Any] | None = None,
        selection: dict[str, Any] | None = None,
    ):
        if keep_ratio is not None and threshold is not None:
            raise InputError("is given beside keep_ratio", where="threshold", hint="Give one of the two.")
        if not any(isinstance(module, SharedClassifier) for module in student.modules()):
            share_classifier(student, teacher, projector=projector)
        super().__init__(student, {"teacher": teacher})
        kept = {"threshold": threshold} if threshold is not None else {"keep_ratio": keep_ratio or 0.5}
        weights = {"alignment": alpha, "contrast": beta}
        self.objective = {"loss": "web_distill", "on": "logits", **weights, **(objective or {})}
        self.selection = {"name": "web_instances", **kept, "warmup_epochs": warmup_epochs, **(selection or {})}

    def recipe(self) -> dict[str, Any]:
        """Return teacher, objective and selection as a recipe has them."""
        return {"teacher": {"model": GIVEN}, "objectives": [self.objective], "selection": self.selection}

    def finished(self, student: nn.Module) -> nn.Module:
        """Return the student with projector and classifier in one layer."""
        return merge_classifier(student)
