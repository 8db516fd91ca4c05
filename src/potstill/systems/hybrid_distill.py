"""Hybrid Distill: one student of a contrastive and of a masked-image teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from potstill.systems.given_models import GIVEN, GivenModels

CL, MIM = "contrastive", "masked_image"


class HybridDistillPipeline(GivenModels):
    """Final features of one teacher and token relations of another, while the student sees part of the tokens.

    For a compact image encoder that is to be good at classification and at dense tasks, without labels. A teacher whose
    term has weight 0 is not run. After this the student is an ordinary model: fine-tune it with all tokens.

    Args:
        student: An image transformer.
        cl_teacher: A contrastive or supervised image transformer with the student's patch grid.
        mim_teacher: A masked-image transformer with the student's patch grid.
        stages: Layers before which tokens are dropped; None = at the start and after each third.
        keep_ratios: Shares of all patches that those see; None = falling evenly to 1 - mask_ratio.
        relation_layer: The student's layer of the relation term; None = 0.75 of its depth.
        alpha: Weight of the feature term.
        beta: Weight of the relation term.
        mask_ratio: Share of patches that is gone at the end, without ``keep_ratios``.
        feature: Further options of "hybrid_feature" (``on``, ``teacher_on``, ``own_tokens``, ...).
        relation: Further options of "hybrid_relation" (``relation_heads``, ``teacher_layer``, ...).

    Source:
        Shi et al., "Hybrid Distillation: Connecting Masked Autoencoders with Contrastive Learners", ICLR 2024
        (arXiv 2306.15876); ``docs/losses/hybrid-distill.md`` says what is reconstructed.
    """

    def __init__(
        self,
        student: nn.Module,
        cl_teacher: nn.Module,
        mim_teacher: nn.Module,
        stages: Sequence[int] | None = None,
        keep_ratios: Sequence[float] | None = None,
        relation_layer: int | None = None,
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        mask_ratio: float = 0.3,
        feature: dict[str, Any] | None = None,
        relation: dict[str, Any] | None = None,
    ):
        super().__init__(student, {CL: cl_teacher, MIM: mim_teacher})
        masking: dict[str, Any] = {"mask_ratio": mask_ratio}
        if stages is not None:
            masking["stages"] = list(stages)
        if keep_ratios is not None:
            masking["keep_ratios"] = list(keep_ratios)
        layer = {} if relation_layer is None else {"layer": relation_layer}
        self.objectives = [
            {"loss": "hybrid_feature", "teacher": CL, "weight": alpha, **masking, **(feature or {})},
            {"loss": "hybrid_relation", "teacher": MIM, "weight": beta, **masking, **layer, **(relation or {})},
        ]

    def recipe(self) -> dict[str, Any]:
        """Return teachers and objectives as a recipe has them."""
        return {"teachers": {CL: {"model": GIVEN}, MIM: {"model": GIVEN}}, "objectives": self.objectives}
