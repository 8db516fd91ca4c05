"""Read open_clip's CoCa checkpoints (``coca_ViT-B-32``, ``coca_ViT-L-14``) as a ``CocaModel``.

Every tensor of the checkpoint must find its place and every parameter of the model its tensor, or nothing is loaded.
"""

from __future__ import annotations

import os
import pickle
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from potstill.errors import InputError, IntegrityError, suggest
from potstill.models.coca import CocaConfig, CocaModel

__all__ = ["OPEN_CLIP_COCA", "convert_open_clip", "load_open_clip_coca", "open_clip_config"]

_COMMON = {
    **{"layout": "open_clip", "pooling": "shared", "image_cls_token": True, "image_size": 224, "vocab_size": 49408},
    **{"caption_queries": 255, "pooler_heads": 8, "text_layers": 12, "multimodal_layers": 12, "max_text_length": 76},
    **{"pad_token_id": 0, "bos_token_id": 49406, "eos_token_id": 49407},
}
OPEN_CLIP_COCA: dict[str, dict[str, Any]] = {
    "coca_ViT-B-32": {
        **_COMMON,
        **{"patch_size": 32, "image_width": 768, "image_heads": 12, "image_layers": 12},
        **{"text_width": 512, "text_heads": 8, "embed_dim": 512},
    },
    "coca_ViT-L-14": {
        **_COMMON,
        **{"patch_size": 14, "image_width": 1024, "image_heads": 16, "image_layers": 24},
        **{"text_width": 768, "text_heads": 12, "embed_dim": 768},
    },
}
"""Fields of ``CocaConfig`` for each architecture that open_clip names."""


def open_clip_config(model_name: str, **changes: Any) -> CocaConfig:
    """Return the configuration of one of open_clip's CoCa architectures; ``InputError`` for another name."""
    if model_name not in OPEN_CLIP_COCA:
        hint = suggest(model_name, OPEN_CLIP_COCA)
        raise InputError(f'unknown open_clip architecture "{model_name}"', where="model_name", hint=hint)
    return CocaConfig(**{**OPEN_CLIP_COCA[model_name], **changes})


def load_open_clip_coca(
    source: str | os.PathLike | dict[str, Tensor],
    model_name: str = "coca_ViT-L-14",
    *,
    allow_pickle: bool = False,
    **changes: Any,
) -> CocaModel:
    """Load an open_clip CoCa checkpoint.

    Args:
        source: Path of a ``.safetensors`` file, or a state dict. A pickled file (``.bin``, ``.pt``) can run code when
            it is opened, so it is read only with ``allow_pickle=True``, and then with torch's weights-only reader.
        model_name: ``"coca_ViT-B-32"`` or ``"coca_ViT-L-14"``.
        allow_pickle: Accept pickled files.
        changes: Fields of ``CocaConfig`` to change, such as ``task_labels``. New heads start at random.

    Returns:
        The model in fp32 and evaluation mode.

    Raises:
        InputError: Unknown name, or a pickled file without ``allow_pickle``.
        IntegrityError: The file is missing, damaged, or holds other tensors than the architecture has.
    """
    config = open_clip_config(model_name, **changes)
    state = source if isinstance(source, dict) else _read(os.fspath(source), allow_pickle)
    return convert_open_clip(state, config)


def convert_open_clip(state_dict: dict[str, Tensor], config: CocaConfig) -> CocaModel:
    """Build a ``CocaModel`` from the state dict of open_clip's ``CoCa``.

    Two parameters of open_clip have no direct counterpart: the position embedding of its CLS token is added to our
    CLS token (open_clip always pads texts to the full context, so the CLS stands at one position), and stacked
    query-key-value projections are split.

    Args:
        state_dict: Tensors by open_clip's names; a ``module.`` prefix and a ``state_dict`` wrapper are removed.
        config: The matching configuration, layout ``"open_clip"``; may name task heads, which start at random.

    Returns:
        The model in fp32 and evaluation mode.

    Raises:
        InputError: The configuration has another layout, or ties the caption head to the token embedding.
        IntegrityError: Names the keys that are missing, left over, or of another shape.
    """
    if config.layout != "open_clip":
        raise InputError("wrong layout", where="config.layout", expected='"open_clip"', got=config.layout)
    if config.tie_word_embeddings:
        raise InputError(
            "open_clip's caption head has weights of its own", where="config.tie_word_embeddings", got=True
        )
    source = _unwrap(state_dict)
    read = _Reader(source)
    ours = _image(read, config) | _text(read, config) | _multimodal(read, config)
    ours["logit_scale"] = read("logit_scale").reshape(())
    if read.missing or source:
        raise IntegrityError(
            "not the state dict of this architecture", where="open_clip checkpoint",
            got=f"missing {_listed(read.missing)}, unexpected {_listed(source)}",
            hint="Check model_name.",
        )  # fmt: skip
    model = CocaModel(config)
    target = model.state_dict()
    wrong = [
        f"{k} {tuple(v.shape)} for {tuple(target[k].shape)}" for k, v in ours.items() if v.shape != target[k].shape
    ]
    if wrong:
        raise IntegrityError("tensors of another size", where="open_clip checkpoint", got="; ".join(wrong[:8]))
    ours |= {key: value for key, value in target.items() if key.startswith("task_heads.") or key == "slot_embedding"}
    model.load_state_dict(ours)
    return model.eval()


class _Reader:
    """Takes tensors out of a state dict by name and remembers which were not there."""

    def __init__(self, source: dict[str, Tensor]):
        self.source = source
        self.missing: list[str] = []

    def __call__(self, key: str) -> Tensor:
        if key not in self.source:
            self.missing.append(key)
            return torch.zeros(1, 1, 1)
        return self.source.pop(key)

    def layer(self, theirs: str, ours: str) -> dict[str, Tensor]:
        """Return weight and bias under our name."""
        return {f"{ours}.{part}": self(f"{theirs}.{part}") for part in ("weight", "bias")}

    def attention(self, theirs: str, ours: str) -> dict[str, Tensor]:
        """Return the four projections of an ``nn.MultiheadAttention``, whose first three may be stacked."""
        names = ("q_proj", "k_proj", "v_proj")
        if f"{theirs}.q_proj_weight" in self.source:
            weights = [self(f"{theirs}.{name}_weight") for name in names]
        else:
            weights = _thirds(self(f"{theirs}.in_proj_weight"))
        biases = _thirds(self(f"{theirs}.in_proj_bias"))
        state = {f"{ours}.{name}.weight": weight for name, weight in zip(names, weights)}
        state |= {f"{ours}.{name}.bias": bias for name, bias in zip(names, biases)}
        return state | self.layer(f"{theirs}.out_proj", f"{ours}.out_proj")

    def block(self, theirs: str, ours: str, names: tuple[str, str, str, str]) -> dict[str, Tensor]:
        """Return one residual block; ``names`` are ours for its norm, attention, second norm and MLP."""
        norm, attention, norm_mlp, mlp = (f"{ours}.{name}" for name in names)
        state = self.layer(f"{theirs}.ln_1", norm) | self.attention(f"{theirs}.attn", attention)
        state |= self.layer(f"{theirs}.ln_2", norm_mlp)
        return state | self.layer(f"{theirs}.mlp.c_fc", f"{mlp}.fc1") | self.layer(f"{theirs}.mlp.c_proj", f"{mlp}.fc2")


_PLAIN = ("norm_self", "self_attn", "norm_mlp", "mlp")


def _image(read: _Reader, config: CocaConfig) -> dict[str, Tensor]:
    state = {
        "image_encoder.stem.weight": read("visual.conv1.weight"),
        "image_encoder.cls_token": read("visual.class_embedding"),
        "image_encoder.positions": read("visual.positional_embedding"),
        "image_pooler.caption.query": read("visual.attn_pool.query"),
        "image_pooler.projection.weight": read("visual.proj").transpose(0, 1),
    }
    state |= read.layer("visual.ln_pre", "image_encoder.norm_pre") | read.layer("visual.ln_post", "image_pooler.norm")
    for i in range(config.image_layers):
        state |= read.block(f"visual.transformer.resblocks.{i}", f"image_encoder.blocks.{i}", _PLAIN)
    state |= read.layer("visual.attn_pool.ln_q", "image_pooler.caption.norm_query")
    state |= read.layer("visual.attn_pool.ln_k", "image_pooler.caption.norm_context")
    return state | read.attention("visual.attn_pool.attn", "image_pooler.caption.attn")


def _text(read: _Reader, config: CocaConfig) -> dict[str, Tensor]:
    positions = read("text.positional_embedding")
    state = {
        "text_decoder.token_embedding.weight": read("text.token_embedding.weight"),
        "text_decoder.positions": positions[:-1],
        "text_decoder.cls_token": read("text.cls_emb") + positions[-1],
        "text_decoder.projection.weight": read("text.text_projection").transpose(0, 1),
    }
    for i in range(config.text_layers):
        state |= read.block(f"text.transformer.resblocks.{i}", f"text_decoder.blocks.{i}", _PLAIN)
    return state | read.layer("text.ln_final", "text_decoder.norm_cls")


def _multimodal(read: _Reader, config: CocaConfig) -> dict[str, Tensor]:
    state = {"lm_head.weight": read("text_decoder.text_projection").transpose(0, 1)}
    for i in range(config.multimodal_layers):
        ours, cross = f"multimodal_decoder.blocks.{i}", f"text_decoder.cross_attn.{i}"
        names = ("norm_self", "self_attn", "norm_self_mlp", "self_mlp")
        state |= read.block(f"text_decoder.resblocks.{i}", ours, names)
        state |= read.block(cross, ours, ("norm_cross", "cross_attn", "norm_mlp", "mlp"))
        state |= read.layer(f"{cross}.ln_1_kv", f"{ours}.norm_memory")
    return state | read.layer("text_decoder.ln_final", "multimodal_decoder.norm")


def _thirds(tensor: Tensor) -> tuple[Tensor, ...]:
    # A missing tensor is reported later, all at once; until then its place is held.
    return tensor.chunk(3) if len(tensor) % 3 == 0 else (tensor, tensor, tensor)


def _unwrap(state: dict[str, Any]) -> dict[str, Tensor]:
    state = state.get("state_dict", state)
    wrong = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if wrong:
        raise IntegrityError("not a state dict", where="open_clip checkpoint", got=f"no tensor in {_listed(wrong)}")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    # Early files carry the causal masks, which are no weights.
    return {key: value for key, value in state.items() if key not in ("text.attn_mask", "text_decoder.attn_mask")}


def _read(path: str, allow_pickle: bool) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise IntegrityError("no such file", where=path)
    if path.endswith(".safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        except SafetensorError as error:
            raise IntegrityError(f"damaged safetensors file ({error})", where=path) from error
    if not allow_pickle:
        raise InputError(
            "not a safetensors file, and a pickled one can run code", where=path,
            hint="Convert it, or pass allow_pickle=True if you trust its author.",
        )  # fmt: skip
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise IntegrityError(f"damaged, or more than weights ({error})", where=path) from error


def _listed(keys: Any) -> str:
    keys = sorted(keys)
    return "nothing" if not keys else ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
