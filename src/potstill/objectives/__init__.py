"""Objectives: a loss, where it reads its tensors, its trainable part, its module and its weight."""

from potstill.objectives.attention import SupervisedAttentionObjective
from potstill.objectives.base import IGNORE_INDEX, OBJECTIVES, Objective, Seen, Where
from potstill.objectives.hidden import HiddenObjective, ReadoutObjective
from potstill.objectives.kdpp import KDPPObjective, NDObjective
from potstill.objectives.maps import AMADObjective, AttentionObjective
from potstill.objectives.output import LabelObjective, ModelLossObjective, OutputObjective
from potstill.objectives.pld import PLDObjective
from potstill.objectives.sinkd import SinkDObjective
from potstill.objectives.trg import TRGObjective

__all__ = [
    "IGNORE_INDEX",
    "OBJECTIVES",
    "AMADObjective",
    "AttentionObjective",
    "HiddenObjective",
    "KDPPObjective",
    "LabelObjective",
    "ModelLossObjective",
    "NDObjective",
    "Objective",
    "OutputObjective",
    "PLDObjective",
    "ReadoutObjective",
    "Seen",
    "SinkDObjective",
    "SupervisedAttentionObjective",
    "TRGObjective",
    "Where",
]
