"""Configuration of a classifier that knows some classes and looks for others."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from potstill.errors import InputError, suggest

_SIZES = ("num_novel", "num_heads", "projector_width", "cluster_width")
# What transformers itself hands to a configuration besides the declared fields, when it is built or read back.
_INHERITED_KEYS = {
    *("attn_implementation", "experts_implementation", "output_attentions", "torch_dtype", "name_or_path"),
    *("num_labels", "model_type", "per_layer_config", "use_cache"),
}


class NovelClassConfig(PreTrainedConfig):
    """An encoder of pictures, and the sizes of its ``NovelClassHead``.

    Args:
        encoder: Configuration of a vision model of transformers, as a mapping with its ``model_type`` (vit, resnet,
            ...): one whose plain model takes ``pixel_values``.
        image_size, num_channels: Of the pictures; handed to the encoder where it has such a field.
        num_labels: K, the number of known classes.
        num_novel: U, the number of new classes.
        num_heads: H, how many heads look for them.
        projector_width, cluster_width: Width inside the MLP of each head, and of the space of its clusters.
        temperature: What cosines are divided by to be ``logits``.

    Raises:
        InputError: A field is unknown, has a wrong type, or the encoder is of no known type.
    """

    model_type = "potstill_novel_classes"
    sub_configs: ClassVar[dict[str, type]] = {"encoder": AutoConfig}

    encoder: dict[str, Any] | PreTrainedConfig | None = None
    image_size: int = 28
    num_channels: int = 1
    num_novel: int = 5
    num_heads: int = 4
    projector_width: int = 2048
    cluster_width: int = 256
    temperature: float = 0.1
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any):
        known = [*NovelClassConfig.__annotations__, "num_labels", "id2label", "label2id"]
        for key in kwargs:
            if not (key.startswith("_") or key in _INHERITED_KEYS):
                raise InputError(f'unknown field "{key}"', where="NovelClassConfig", hint=suggest(key, known))
        for name in _SIZES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError("does not fit", where=f"NovelClassConfig.{name}", expected="1 or more", got=value)
        if not self.temperature > 0:
            raise InputError(
                "does not fit", where="NovelClassConfig.temperature", expected="above 0", got=self.temperature
            )
        self.encoder = self._encoder_config()
        super().__post_init__(**kwargs)

    def _encoder_config(self) -> PreTrainedConfig:
        if isinstance(self.encoder, PreTrainedConfig):
            return self.encoder
        fields = {"model_type": "vit", **(self.encoder or {})}
        name = fields.pop("model_type")
        try:
            default = AutoConfig.for_model(name)
        except ValueError as error:
            raise InputError("unknown encoder", where="NovelClassConfig.encoder.model_type", got=name) from error
        for key in ("image_size", "num_channels"):
            if hasattr(default, key):
                fields.setdefault(key, getattr(self, key))
        return type(default)(**fields)
