"""Configuration of CoCa: sizes, where the norms sit, special tokens and task heads."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from potstill.errors import InputError, suggest

_CHOICES = {"stem": ("patch", "conv"), "pooling": ("cascade", "parallel", "shared"), "layout": ("paper", "open_clip")}
# What transformers itself hands to a configuration besides the declared fields, when it is built or read back.
_INHERITED_KEYS = {
    *("attn_implementation", "experts_implementation", "output_attentions", "torch_dtype", "name_or_path"),
    *("num_labels", "model_type", "per_layer_config", "use_cache"),
}
_SIZES = (
    *("image_size", "num_channels", "patch_size", "image_width", "image_heads", "image_layers", "vocab_size"),
    *("max_text_length", "text_width", "text_heads", "text_layers", "multimodal_layers"),
    *("caption_queries", "embed_dim", "max_images"),
)
_NUMBERS = (
    *("caption_weight", "contrastive_weight", "dropout", "attention_dropout"),
    *("image_mlp_ratio", "text_mlp_ratio", "layer_norm_eps", "initializer_range"),
)


class CocaConfig(PreTrainedConfig):
    """Sizes and options of a ``CocaModel``. The defaults are CoCa-Base of the paper.

    Args:
        image_size: Height and width of a picture in pixels.
        num_channels: Colour channels of a picture.
        stem: How pixels become tokens: ``"patch"``, one convolution of ``patch_size``, or ``"conv"``, three 3×3
            convolutions of stride 2 (an eighth of the size: 48 px give 36 tokens), better for small models.
        patch_size: Side of a patch in pixels; only read by the ``"patch"`` stem.
        image_cls_token: Prepend a learned token to the patches.
        image_width, image_heads, image_layers, image_mlp_ratio: The vision transformer.
        vocab_size: Number of token ids.
        max_text_length: Longest token sequence; the CLS token of the text decoder is not counted.
        text_width, text_heads, text_layers, multimodal_layers, text_mlp_ratio: Both text decoders and the memory.
        pooling: ``"cascade"``: caption queries read the image tokens, the contrastive query reads what they found
            (the paper). ``"parallel"``: both read the image tokens. ``"shared"``: one set of queries, the first of
            which serves contrast (the released open_clip checkpoints).
        caption_queries: Number of memory tokens per picture that the multimodal decoder can read.
        pooler_heads: Attention heads of the poolers; None = ``text_heads``.
        embed_dim: Width of the contrastive embeddings.
        max_images: Pictures a row may have; more than one adds a learned embedding per slot to the memory.
        task_labels: Classes of each classification head, by task name.
        layout: ``"paper"``, or ``"open_clip"`` for converted checkpoints: norm before instead of after the vision
            blocks, a second MLP and a memory norm in each multimodal block, and their mask of the CLS token.
        tie_word_embeddings: Use the token embedding as the weight of the caption head.
        caption_weight, contrastive_weight: Weights of the two losses of the paper; each task head's loss has weight 1.
        logit_scale_init: Start of the contrastive temperature, as the log of its inverse.
        hidden_act, layer_norm_eps, dropout, attention_dropout: As everywhere.
        initializer_range: Standard deviation of embeddings at the start; weights follow their fan-in.
        pad_token_id, bos_token_id, eos_token_id: Special tokens.

    Raises:
        InputError: A field is unknown, has a wrong type, or does not fit another.

    Source:
        Yu et al. 2022, "CoCa: Contrastive Captioners are Image-Text Foundation Models", arXiv 2205.01917, table 1.
    """

    model_type = "potstill_coca"
    attribute_map = {"hidden_size": "text_width", "num_attention_heads": "text_heads"}  # noqa: RUF012

    image_size: int = 288
    num_channels: int = 3
    stem: str = "patch"
    patch_size: int = 18
    image_cls_token: bool = False
    image_width: int = 768
    image_heads: int = 12
    image_layers: int = 12
    image_mlp_ratio: float = 4.0

    vocab_size: int = 64000
    max_text_length: int = 76
    text_width: int = 768
    text_heads: int = 12
    text_layers: int = 12
    multimodal_layers: int = 12
    text_mlp_ratio: float = 4.0

    pooling: str = "cascade"
    caption_queries: int = 256
    pooler_heads: int | None = None
    embed_dim: int = 768
    max_images: int = 1
    task_labels: dict[str, list[str]] | None = None
    layout: str = "paper"
    tie_word_embeddings: bool = False

    caption_weight: float = 2.0
    contrastive_weight: float = 1.0
    logit_scale_init: float = 2.6592600369327779  # ln(1 / 0.07)

    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float = 0.0
    initializer_range: float = 0.02

    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2

    def __post_init__(self, **kwargs: Any):
        known = [name for name in CocaConfig.__annotations__ if not name.startswith("_")]
        for key in kwargs:
            if not is_inherited(key):
                raise InputError(f'unknown field "{key}"', where="CocaConfig", hint=suggest(key, known))
        # Sorted, as in the saved file, so that parameters come in the same order before saving and after loading.
        self.task_labels = dict(sorted((self.task_labels or {}).items()))
        super().__post_init__(**kwargs)
        self._check()

    @property
    def num_hidden_layers(self) -> int:
        """Blocks that a generated token passes: text decoder and multimodal decoder."""
        return self.text_layers + self.multimodal_layers

    @property
    def image_tokens(self) -> int:
        """Number of tokens the image encoder makes of one picture."""
        side = -(-self.image_size // 8) if self.stem == "conv" else self.image_size // self.patch_size
        return side * side + int(self.image_cls_token)

    def _check(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise _wrong(name, expected=" or ".join(allowed), got=value)
        for name in (*_SIZES, *([] if self.pooler_heads is None else ["pooler_heads"])):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise _wrong(name, expected="an integer ≥ 1", got=value)
        for name in _NUMBERS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
                raise _wrong(name, expected="a number ≥ 0", got=value)
        for heads, width in (
            ("image_heads", "image_width"),
            ("text_heads", "text_width"),
            ("pooler_heads", "text_width"),
        ):
            if getattr(self, width) % (getattr(self, heads) or 1):
                raise _wrong(heads, expected=f"a divisor of {width} {getattr(self, width)}", got=getattr(self, heads))
        if self.stem == "patch" and self.image_size % self.patch_size:
            raise _wrong("patch_size", expected=f"a divisor of image_size {self.image_size}", got=self.patch_size)
        if self.layout == "open_clip" and self.pooling != "shared":
            raise _wrong("pooling", expected='"shared" in the layout "open_clip"', got=self.pooling)
        for task, labels in self.task_labels.items():
            if not task.isidentifier() or task in ("caption", "contrastive"):
                raise _wrong("task_labels", expected="task names like variables, other than the two losses", got=task)
            if isinstance(labels, str) or not labels or len(set(labels)) != len(labels):
                raise _wrong(f"task_labels.{task}", expected="a non-empty list of different classes", got=labels)

    @classmethod
    def coca_base(cls, **changes: Any) -> CocaConfig:
        """CoCa-Base of the paper, 383M parameters (86M image encoder, 297M text)."""
        return cls(**changes)

    @classmethod
    def coca_large(cls, **changes: Any) -> CocaConfig:
        """CoCa-Large of the paper, 787M parameters (303M image encoder, 484M text)."""
        large = {"image_width": 1024, "image_heads": 16, "image_layers": 24, "text_width": 1024, "text_heads": 16}
        return cls(**{**large, "embed_dim": 1024, **changes})

    @classmethod
    def coca_giant(cls, **changes: Any) -> CocaConfig:
        """CoCa of the paper, 2.1B parameters (1B image encoder, 1.1B text)."""
        image = {"image_width": 1408, "image_heads": 16, "image_layers": 40, "image_mlp_ratio": 6144 / 1408}
        text = {"text_width": 1408, "text_heads": 16, "text_layers": 18, "multimodal_layers": 18}
        return cls(**{**image, **text, "embed_dim": 1408, **changes})

    @classmethod
    def small_scenes(cls, **changes: Any) -> CocaConfig:
        """Small enough to train on a processor: 48 px, 36 image tokens, width 128, two pictures a row."""
        image = {"image_size": 48, "stem": "conv", "image_width": 128, "image_heads": 4, "image_layers": 4}
        text = {"text_width": 128, "text_heads": 4, "text_layers": 3, "multimodal_layers": 3, "vocab_size": 512}
        rest = {"max_text_length": 64, "caption_queries": 24, "embed_dim": 128, "max_images": 2}
        return cls(**{**image, **text, **rest, "tie_word_embeddings": True, **changes})


def _wrong(field: str, *, expected: str, got: Any) -> InputError:
    return InputError("does not fit", where=f"CocaConfig.{field}", expected=expected, got=got)


def is_inherited(key: str) -> bool:
    """True for what transformers itself hands to a configuration besides the declared fields."""
    from transformers import GenerationConfig

    return key.startswith("_") or key in _INHERITED_KEYS or key in GenerationConfig().to_dict()
