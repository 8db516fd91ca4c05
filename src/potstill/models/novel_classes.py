"""A classifier that knows K classes and forms clusters for U others: any vision encoder under a ``NovelClassHead``."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import ModelOutput

from potstill.models.novel_class_head import NovelClassHead
from potstill.models.novel_classes_config import NovelClassConfig

__all__ = ["NovelClassConfig", "NovelClassModel", "NovelClassOutput"]


@dataclass
class NovelClassOutput(ModelOutput):
    """What a ``NovelClassModel`` returns for B pictures.

    Attributes:
        logits: Of known and new classes by the best head, ``[B, K + U]``: cosines over the temperature.
        known_cosines: Of the known classes, ``[B, K]``.
        head_cosines: Of known and new classes by every head, ``[B, H, K + U]``.
    """

    logits: Tensor | None = None
    known_cosines: Tensor | None = None
    head_cosines: Tensor | None = None


class NovelClassModel(PreTrainedModel):
    """An encoder of pictures with one cosine classifier for known classes and H heads that look for new ones.

    Features are the mean of the encoder's last hidden states, over tokens or places. ``best_head`` is the head whose
    clusters count in ``logits``; training sets it. The numbers of new classes mean nothing: they are clusters.

    Example:
        >>> import torch
        >>> encoder = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> encoder |= {"intermediate_size": 32, "patch_size": 7}
        >>> model = NovelClassModel(NovelClassConfig(encoder=encoder, num_labels=3, num_novel=2)).eval()
        >>> model(torch.zeros(4, 1, 28, 28)).logits.shape
        torch.Size([4, 5])
    """

    config_class = NovelClassConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    classification_metric = "novel_classes"  # of potstill.evaluate: clusters have no names until they are matched

    def __init__(self, config: NovelClassConfig):
        super().__init__(config)
        self.encoder = _encoder(config.encoder)
        sizes = (_width_of(config.encoder), config.num_labels, config.num_novel, config.num_heads)
        self.head = NovelClassHead(*sizes, hidden=config.projector_width, out=config.cluster_width)
        self.register_buffer("best_head", torch.zeros((), dtype=torch.int64))
        self.post_init()
        self.normalize_prototypes()

    def normalize_prototypes(self) -> None:
        """Give every prototype length 1, in place: before every optimiser step."""
        self.head.normalize_prototypes()

    def features(self, pixel_values: Tensor) -> Tensor:
        """Return the features of pictures, ``[B, D]``."""
        hidden = self.encoder(pixel_values).last_hidden_state
        return hidden.mean(1) if hidden.ndim == 3 else hidden.flatten(2).mean(2)

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> NovelClassOutput:
        """Return cosines by every head, and the logits of the best one."""
        features = self.features(pixel_values)
        known = self.head.known_logits(features)  # by itself: what reads this alone must not reach the other heads
        cosines = self.head.join(known, self.head.novel_logits(features)).transpose(0, 1)  # [B, H, K + U]
        best = cosines.index_select(1, self.best_head.view(1)).squeeze(1)
        return NovelClassOutput(best / self.config.temperature, known, cosines)


def _encoder(config: Any) -> nn.Module:
    """Return the plain model of a configuration, without a pooling layer that nothing would train."""
    plain = AutoModel._model_mapping[type(config)]
    can_do_without = "add_pooling_layer" in inspect.signature(plain).parameters
    return AutoModel.from_config(config, **({"add_pooling_layer": False} if can_do_without else {}))


def _width_of(config: Any) -> int:
    sizes = getattr(config, "hidden_sizes", None)
    return sizes[-1] if sizes else config.hidden_size
