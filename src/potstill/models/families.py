"""What Potstill knows about common architectures: their distillable modules, as data.

A *module* is a stack of blocks that one objective, or one arm of a policy, stands for: an image encoder, a text
decoder. The description says where its blocks are, which tokens count, and which fields of the configuration hold its
depth and width, so that one builder can make a smaller model of any described family.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from potstill.models.family_spec import Family, ModuleSpec, Part
from potstill.models.paths import has_module
from potstill.registry import Registry, load_plugins

DECODER_MASK = "decoder_attention_mask|labels"


FAMILIES: Registry[Family] = Registry("model family")


def family_of(model: nn.Module) -> Family | None:
    """Return the family of a model, limited to the modules this model has, with the paths they have in it.

    Args:
        model: Any module; families are found by ``model.config.model_type`` and, where needed, by the class name.

    Returns:
        A ``Family`` whose ``blocks`` are paths that exist in ``model``, or None if the model is of no known family
        or has none of the family's modules.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    load_plugins()  # a family is looked up by what the model says, never by a name that could be refused
    described = [FAMILIES.get(name) for name in FAMILIES]
    described.sort(key=lambda family: not family.classes)
    for family in described:
        if model_type not in family.model_types or (family.classes and type(model).__name__ not in family.classes):
            continue
        modules = [*_present(model, family.modules), *_inside_parts(model, family.parts)]
        if modules:
            return dataclasses.replace(family, modules=tuple(modules))
    return None


def _present(model: nn.Module, specs: tuple[ModuleSpec, ...]) -> list[ModuleSpec]:
    """The specs whose blocks exist, in the model itself or below its ``base_model_prefix``."""
    prefix = getattr(model, "base_model_prefix", "")
    found = []
    for spec in specs:
        candidates = spec.blocks.split("|")
        candidates += [f"{prefix}.{path}" for path in candidates] if prefix else []
        path = next((path for path in candidates if has_module(model, path)), None)
        if path is not None:
            found.append(dataclasses.replace(spec, blocks=path, mask=_whole_mask(model, spec), own_tokens=None))
    return found


def _whole_mask(model: nn.Module, spec: ModuleSpec) -> str | None:
    """The mask with the model's own tokens behind it, as ``token_mask`` reads it."""
    if spec.mask is None or spec.own_tokens is None:
        return spec.mask
    number = model.config
    for name in spec.own_tokens.split("."):
        number = getattr(number, name)
    return f"{spec.mask}+{number}"


def _inside_parts(model: nn.Module, parts: tuple[Part, ...]) -> list[ModuleSpec]:
    found: list[ModuleSpec] = []
    for part in parts:
        family = family_of(model.get_submodule(part.path)) if has_module(model, part.path) else None
        if family is not None and len(family.modules) == 1:
            spec = family.modules[0].inside(part.path, part.config)
            found.append(dataclasses.replace(spec, name=part.name, mask=part.mask))
    return found


def _register(family: Family) -> None:
    FAMILIES.register(family.name)(family)


def _tower(name: str, blocks: str, config: str, mask: str | None = None, **fields: Any) -> ModuleSpec:
    """A module whose fields have the usual names in a configuration nested at ``config``."""
    usual = {"depth": "num_hidden_layers", "width": "hidden_size"}
    usual |= {"heads": "num_attention_heads", "ffn": "intermediate_size"}
    return ModuleSpec(name, blocks, mask, **{k: f"{config}.{v}" for k, v in usual.items()}, **fields)


_register(
    Family(
        "coca",
        ("potstill_coca",),
        (
            ModuleSpec(
                "image_encoder",
                "image_encoder.blocks",
                None,
                "image_layers",
                "image_width",
                "image_heads",
                None,
                rows="image_mask",
            ),
            *(
                ModuleSpec(name, f"{name}.blocks", "attention_mask", depth, "text_width", "text_heads", None)
                for name, depth in (("text_decoder", "text_layers"), ("multimodal_decoder", "multimodal_layers"))
            ),
        ),
        follows=(("pooler_heads", "text_heads"),),  # the MLPs are a ratio of the width and need no field here
    )
)
_register(
    Family(
        "clip",
        ("clip",),
        (
            _tower("image_encoder", "vision_model.encoder.layers", "vision_config"),
            _tower("text_encoder", "text_model.encoder.layers", "text_config", "attention_mask"),
        ),
    )
)
_register(
    Family(
        "siglip",
        ("siglip",),
        (
            _tower("image_encoder", "vision_model.encoder.layers", "vision_config"),
            # SigLIP pads every text to one length and attends to the pads, so they count: no mask.
            _tower("text_encoder", "text_model.encoder.layers", "text_config"),
        ),
        follows=(("text_config.projection_size", "vision_config.hidden_size"),),
    )
)
_BLIP = (
    _tower("image_encoder", "vision_model.encoder.layers", "vision_config"),
    _tower("text_encoder", "text_model.encoder.layer|text_encoder.encoder.layer", "text_config", "attention_mask"),
    _tower("text_decoder", "text_decoder.bert.encoder.layer", "text_config", "attention_mask"),
)
_BLIP_FOLLOWS = (("text_config.encoder_hidden_size", "vision_config.hidden_size"),)
_register(Family("blip", ("blip",), _BLIP, follows=_BLIP_FOLLOWS))
# Here the decoder reads the answer, not the question that attention_mask belongs to.
_register(
    Family(
        "blip-question-answering",
        ("blip",),
        (*_BLIP[:2], dataclasses.replace(_BLIP[2], mask=DECODER_MASK)),
        classes=("BlipForQuestionAnswering",),
        follows=_BLIP_FOLLOWS,
        prediction="text_decoder.cls@output",
    )
)
_register(
    Family(
        "t5",
        ("t5", "mt5", "umt5"),
        tuple(
            # both stacks share everything but the depth
            ModuleSpec(name, blocks, mask, depth, "d_model", "num_heads", "d_ff", head_dim="d_kv")
            for name, blocks, mask, depth in (
                ("text_encoder", "encoder.block", "attention_mask", "num_layers"),
                ("text_decoder", "decoder.block", DECODER_MASK, "num_decoder_layers"),
            )
        ),
    )
)
_register(
    Family(
        "vl_t5",
        ("potstill_vl_t5",),
        tuple(
            # all three stacks share everything but the depth
            ModuleSpec(name, blocks, mask, depth, "d_model", "num_heads", "d_ff", head_dim="d_kv", own_tokens=tokens)
            for name, blocks, mask, depth, tokens in (
                ("image_encoder", "visual.block", None, "visual_layers", None),
                ("multimodal_encoder", "encoder.block", "attention_mask", "num_layers", "image_tokens"),
                ("text_decoder", "decoder.block", DECODER_MASK, "num_decoder_layers", None),
            )
        ),
    )
)
_register(
    Family(
        "bert",
        ("bert", "roberta", "xlm-roberta", "electra"),
        (ModuleSpec("text_encoder", "encoder.layer", "attention_mask"),),
    )
)
_register(
    Family(
        "distilbert",
        ("distilbert",),
        (
            ModuleSpec(
                "text_encoder", "transformer.layer", "attention_mask", "n_layers", "dim", "n_heads", "hidden_dim"
            ),
        ),
    )
)
_register(
    Family(
        "vit",
        ("vit", "deit"),
        (ModuleSpec("image_encoder", "layers|encoder.layer", follows=(("pooler_output_size", "hidden_size"),)),),
    )
)
_register(
    Family(
        "clip-vision",
        ("clip_vision_model", "siglip_vision_model", "blip_vision_model"),
        (ModuleSpec("image_encoder", "encoder.layers|vision_model.encoder.layers"),),
    )
)
_register(
    Family(
        "clip-text",
        ("clip_text_model",),
        (ModuleSpec("text_encoder", "encoder.layers|text_model.encoder.layers", "attention_mask"),),
    )
)
_register(
    Family(
        "llama",
        ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "smollm3", "granite"),
        (
            ModuleSpec(
                "text_decoder",
                "layers",
                "attention_mask",
                kv_heads="num_key_value_heads",
                head_dim="head_dim",
                per_layer=("layer_types", "no_rope_layers"),
            ),
        ),
    )
)
_register(Family("gpt2", ("gpt2",), (ModuleSpec("text_decoder", "h", "attention_mask", ffn="n_inner"),)))
_register(
    Family(
        "vision-encoder-decoder",
        ("vision-encoder-decoder",),
        parts=(
            Part("image_encoder", "encoder", "encoder"),
            Part("text_decoder", "decoder", "decoder", DECODER_MASK),
        ),
        follows=(("decoder.cross_attention_hidden_size", "encoder.hidden_size"),),
    )
)
_register(
    Family(
        "encoder-decoder",
        ("encoder-decoder",),
        parts=(
            Part("text_encoder", "encoder", "encoder", "attention_mask"),
            Part("text_decoder", "decoder", "decoder", DECODER_MASK),
        ),
        follows=(("decoder.cross_attention_hidden_size", "encoder.hidden_size"),),
    )
)
_register(
    Family(
        "vision-text-dual-encoder",
        ("vision-text-dual-encoder",),
        parts=(
            Part("image_encoder", "vision_model", "vision_config"),
            Part("text_encoder", "text_model", "text_config", "attention_mask"),
        ),
    )
)
