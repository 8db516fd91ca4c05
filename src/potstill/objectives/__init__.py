"""Objectives: a loss, where it reads its tensors, its trainable part, its module and its weight."""

from potstill.objectives.alm import ALMLatentsObjective, ALMObjective
from potstill.objectives.attention import SupervisedAttentionObjective
from potstill.objectives.base import IGNORE_INDEX, OBJECTIVES, Objective, Seen, Where
from potstill.objectives.bought_labels import BoughtLabelsObjective
from potstill.objectives.clipped_divergence import DacKLObjective
from potstill.objectives.domain_distillation import DDKObjective
from potstill.objectives.ensembles import MealV2DiscriminatorObjective, MealV2SimilarityObjective
from potstill.objectives.hidden import HiddenObjective, ReadoutObjective
from potstill.objectives.hybrid_distill import HybridFeatureObjective, HybridRelationObjective
from potstill.objectives.kdpp import KDPPObjective, NDObjective
from potstill.objectives.maps import AMADObjective, AttentionObjective
from potstill.objectives.masked_image import MaskedImageObjective
from potstill.objectives.minillm import MiniLLMObjective
from potstill.objectives.mutual_information import MIAlphaObjective
from potstill.objectives.novel_classes import CosineLabelObjective, NovelClassObjective
from potstill.objectives.output import LabelObjective, ModelLossObjective, OutputObjective
from potstill.objectives.pld import PLDObjective
from potstill.objectives.pseudo_classes import LELPObjective
from potstill.objectives.sinkd import SinkDObjective
from potstill.objectives.span_interaction import SpanCorrelationObjective
from potstill.objectives.token_masking import TokenMasking
from potstill.objectives.trg import TRGObjective
from potstill.objectives.two_views import TwoViewsObjective
from potstill.objectives.vlm_ood import VlmOodObjective
from potstill.objectives.web_distill import WebDistillObjective

__all__ = [
    "IGNORE_INDEX",
    "OBJECTIVES",
    "ALMLatentsObjective",
    "ALMObjective",
    "AMADObjective",
    "AttentionObjective",
    "BoughtLabelsObjective",
    "CosineLabelObjective",
    "DDKObjective",
    "DacKLObjective",
    "HiddenObjective",
    "HybridFeatureObjective",
    "HybridRelationObjective",
    "KDPPObjective",
    "LELPObjective",
    "LabelObjective",
    "MIAlphaObjective",
    "MaskedImageObjective",
    "MealV2DiscriminatorObjective",
    "MealV2SimilarityObjective",
    "MiniLLMObjective",
    "ModelLossObjective",
    "NDObjective",
    "NovelClassObjective",
    "Objective",
    "OutputObjective",
    "PLDObjective",
    "ReadoutObjective",
    "Seen",
    "SinkDObjective",
    "SpanCorrelationObjective",
    "SupervisedAttentionObjective",
    "TRGObjective",
    "TokenMasking",
    "TwoViewsObjective",
    "VlmOodObjective",
    "WebDistillObjective",
    "Where",
]
