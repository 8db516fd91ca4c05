"""Objectives: a loss, where it reads its tensors, its trainable part, its module and its weight."""

from potstill.objectives.attention import SupervisedAttentionObjective
from potstill.objectives.base import IGNORE_INDEX, OBJECTIVES, Objective, Seen, Where
from potstill.objectives.bought_labels import BoughtLabelsObjective
from potstill.objectives.hidden import HiddenObjective, ReadoutObjective
from potstill.objectives.maps import AMADObjective, AttentionObjective
from potstill.objectives.novel_classes import CosineLabelObjective, NovelClassObjective
from potstill.objectives.output import LabelObjective, ModelLossObjective, OutputObjective

__all__ = [
    "IGNORE_INDEX",
    "OBJECTIVES",
    "AMADObjective",
    "AttentionObjective",
    "BoughtLabelsObjective",
    "CosineLabelObjective",
    "HiddenObjective",
    "LabelObjective",
    "ModelLossObjective",
    "NovelClassObjective",
    "Objective",
    "OutputObjective",
    "ReadoutObjective",
    "Seen",
    "SupervisedAttentionObjective",
    "Where",
]
