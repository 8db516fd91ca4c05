"""Configuration of VL-T5: T5's fields, and how pictures become tokens."""

from __future__ import annotations

from typing import Any

from transformers import T5Config

from potstill.errors import InputError, suggest
from potstill.models.coca_config import is_inherited

_STEMS = ("conv", "patch")
_OF_T5 = (
    "tie_word_embeddings",
    "scale_decoder_outputs",
    "dense_act_fn",
    "is_gated_act",
    "bos_token_id",
    "decoder_start_token_id",
)
_SIZES = (
    *("image_size", "num_channels", "patch_size", "visual_layers", "vocab_size", "d_model", "d_kv", "d_ff"),
    *("num_layers", "num_decoder_layers", "num_heads"),
)


class VLT5Config(T5Config):
    """Fields of T5, and of the visual tokens. The defaults are T5-small's, with pictures of 224 pixels.

    Args:
        image_size: Height and width of a picture in pixels.
        num_channels: Colour channels of a picture.
        stem: How pixels become tokens: ``"patch"``, one convolution of ``patch_size``, or ``"conv"``, three 3×3
            convolutions of stride 2 (an eighth of the size: 48 px give 36 tokens), better for small models.
        patch_size: Side of a patch in pixels; only read by the ``"patch"`` stem.
        visual_layers: Blocks between visual tokens alone, as wide as T5 and with as many heads.
        decoder_start_token_id: What the decoder reads first; None = the padding token, as T5 does.

    Raises:
        InputError: A field is unknown, has a wrong type, or does not fit another.
    """

    model_type = "potstill_vl_t5"

    image_size: int = 224
    num_channels: int = 3
    stem: str = "patch"
    patch_size: int = 32
    visual_layers: int = 2

    def __post_init__(self, **kwargs: Any):
        known = [*VLT5Config.__annotations__, *T5Config.__annotations__]
        for key in kwargs:
            if not (key in known or key in _OF_T5 or is_inherited(key)):
                raise InputError(f'unknown field "{key}"', where="VLT5Config", hint=suggest(key, known))
        super().__post_init__(**kwargs)
        if getattr(self, "decoder_start_token_id", None) is None:
            self.decoder_start_token_id = self.pad_token_id
        self._check()

    @property
    def image_side(self) -> int:
        """Rows, and columns, of the grid of visual tokens."""
        return -(-self.image_size // 8) if self.stem == "conv" else self.image_size // self.patch_size

    @property
    def image_tokens(self) -> int:
        """Number of visual tokens; in the encoder they stand behind the text."""
        return self.image_side**2

    def _check(self) -> None:
        if self.stem not in _STEMS:
            raise _wrong("stem", expected=" or ".join(_STEMS), got=self.stem)
        for name in _SIZES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise _wrong(name, expected="an integer ≥ 1", got=value)
        if self.stem == "patch" and self.image_size % self.patch_size:
            raise _wrong("patch_size", expected=f"a divisor of image_size {self.image_size}", got=self.patch_size)

    @classmethod
    def small_scenes(cls, **changes: Any) -> VLT5Config:
        """Small enough to train on a processor: 48 px, 36 visual tokens, width 128, 8 heads."""
        image = {"image_size": 48, "stem": "conv", "visual_layers": 2}
        text = {"d_model": 128, "d_kv": 16, "num_heads": 8, "d_ff": 384, "num_layers": 3, "num_decoder_layers": 2}
        return cls(**{**image, **text, "vocab_size": 640, "dropout_rate": 0.0, "eos_token_id": 2, **changes})


def _wrong(field: str, *, expected: str, got: Any) -> InputError:
    return InputError("does not fit", where=f"VLT5Config.{field}", expected=expected, got=got)
