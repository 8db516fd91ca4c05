"""Objectives: a loss, where it reads its tensors, its trainable part, its module and its weight."""

from potstill.objectives.attention import SupervisedAttentionObjective
from potstill.objectives.base import IGNORE_INDEX, OBJECTIVES, Objective, Seen, Where
from potstill.objectives.ensembles import MealV2DiscriminatorObjective, MealV2SimilarityObjective
from potstill.objectives.hidden import HiddenObjective, ReadoutObjective
from potstill.objectives.maps import AMADObjective, AttentionObjective
from potstill.objectives.mutual_information import MIAlphaObjective
from potstill.objectives.output import LabelObjective, ModelLossObjective, OutputObjective
from potstill.objectives.pseudo_classes import LELPObjective

__all__ = [
    "IGNORE_INDEX",
    "OBJECTIVES",
    "AMADObjective",
    "AttentionObjective",
    "HiddenObjective",
    "LELPObjective",
    "LabelObjective",
    "MIAlphaObjective",
    "MealV2DiscriminatorObjective",
    "MealV2SimilarityObjective",
    "ModelLossObjective",
    "Objective",
    "OutputObjective",
    "ReadoutObjective",
    "Seen",
    "SupervisedAttentionObjective",
    "Where",
]
