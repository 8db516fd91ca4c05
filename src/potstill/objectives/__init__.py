"""Objectives: a loss, where it reads its tensors, its trainable part, its module and its weight."""

from potstill.objectives.attention import SupervisedAttentionObjective
from potstill.objectives.base import IGNORE_INDEX, OBJECTIVES, Objective, Seen, Where
from potstill.objectives.hidden import HiddenObjective, ReadoutObjective
from potstill.objectives.hybrid_distill import HybridFeatureObjective, HybridRelationObjective
from potstill.objectives.maps import AMADObjective, AttentionObjective
from potstill.objectives.masked_image import MaskedImageObjective
from potstill.objectives.output import LabelObjective, ModelLossObjective, OutputObjective
from potstill.objectives.token_masking import TokenMasking
from potstill.objectives.vlm_ood import VlmOodObjective
from potstill.objectives.web_distill import WebDistillObjective

__all__ = [
    "IGNORE_INDEX",
    "OBJECTIVES",
    "AMADObjective",
    "AttentionObjective",
    "HiddenObjective",
    "HybridFeatureObjective",
    "HybridRelationObjective",
    "LabelObjective",
    "MaskedImageObjective",
    "ModelLossObjective",
    "Objective",
    "OutputObjective",
    "ReadoutObjective",
    "Seen",
    "SupervisedAttentionObjective",
    "TokenMasking",
    "VlmOodObjective",
    "WebDistillObjective",
    "Where",
]
