import dataclasses

import pytest
import torch
from torch import nn

from potstill.models.families import FAMILIES, family_of
from potstill.models.paths import has_module

DECODER_MASK = "decoder_attention_mask|labels"
EXPECTED = {
    "coca": [
        ("image_encoder", "image_encoder.blocks", None),
        ("text_decoder", "text_decoder.blocks", "attention_mask"),
        ("multimodal_decoder", "multimodal_decoder.blocks", "attention_mask"),
    ],
    "clip": [
        ("image_encoder", "vision_model.encoder.layers", None),
        ("text_encoder", "text_model.encoder.layers", "attention_mask"),
    ],
    "siglip": [
        ("image_encoder", "vision_model.encoder.layers", None),
        ("text_encoder", "text_model.encoder.layers", None),
    ],
    "blip": [
        ("image_encoder", "vision_model.encoder.layers", None),
        ("text_encoder", "text_model.encoder.layer", "attention_mask"),
    ],
    "blip-caption": [
        ("image_encoder", "vision_model.encoder.layers", None),
        ("text_decoder", "text_decoder.bert.encoder.layer", "attention_mask"),
    ],
    "blip-vqa": [
        ("image_encoder", "vision_model.encoder.layers", None),
        ("text_encoder", "text_encoder.encoder.layer", "attention_mask"),
        ("text_decoder", "text_decoder.bert.encoder.layer", DECODER_MASK),
    ],
    "vit-gpt2": [
        ("image_encoder", "encoder.layers", None),
        ("text_decoder", "decoder.transformer.h", DECODER_MASK),
    ],
    "vit-bert": [
        ("image_encoder", "encoder.layers", None),
        ("text_decoder", "decoder.bert.encoder.layer", DECODER_MASK),
    ],
    "t5": [("text_encoder", "encoder.block", "attention_mask"), ("text_decoder", "decoder.block", DECODER_MASK)],
    "vl_t5": [
        ("image_encoder", "visual.block", None),
        ("multimodal_encoder", "encoder.block", "attention_mask+4"),
        ("text_decoder", "decoder.block", DECODER_MASK),
    ],
    "bert": [("text_encoder", "encoder.layer", "attention_mask")],
    "bert-mlm": [("text_encoder", "bert.encoder.layer", "attention_mask")],
    "vit": [("image_encoder", "vit.layers", None)],
    "llama": [("text_decoder", "model.layers", "attention_mask")],
    "qwen3": [("text_decoder", "model.layers", "attention_mask")],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_known_model_is_described_by_the_paths_it_has(tiny, name):
    family = family_of(tiny(name)[0])
    assert [(m.name, m.blocks, m.mask) for m in family.modules] == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_configuration_fields_tell_depth_width_and_heads(tiny, name):
    model, _ = tiny(name)
    for spec in family_of(model).modules:
        values = {}
        for what in ("depth", "width", "heads"):
            value = model.config
            for part in getattr(spec, what).split("."):
                value = getattr(value, part)
            values[what] = value
        assert values == {"depth": 4, "width": 16, "heads": 2}
        assert len(model.get_submodule(spec.blocks)) == 4


@pytest.mark.parametrize("name", EXPECTED)
def test_blocks_return_hidden_states_first(tiny, name):
    model, batch = tiny(name)
    shapes = {}

    def note(path):
        def hook(module, args, output):
            shapes[path] = (output if isinstance(output, torch.Tensor) else output[0]).shape

        return hook

    paths = [spec.blocks for spec in family_of(model).modules]
    handles = [model.get_submodule(p)[-1].register_forward_hook(note(p)) for p in paths]
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    assert all(len(shapes[path]) == 3 and shapes[path][0] == 2 and shapes[path][2] == 16 for path in paths)


def test_unknown_models_have_no_family():
    class Config:
        model_type = "never-heard-of"

    model = nn.Linear(2, 2)
    assert family_of(model) is None
    model.config = Config()
    assert family_of(model) is None


def test_a_family_whose_blocks_are_not_there_is_no_family():
    class Config:
        model_type = "bert"

    model = nn.Linear(2, 2)
    model.config = Config()
    assert family_of(model) is None


def test_a_spec_inside_another_model_moves_every_path():
    spec = dataclasses.replace(FAMILIES.get("llama").modules[0], follows=(("a", "b"),), blocks="x|y.x")
    inner = spec.inside("decoder", "decoder_config")
    assert inner.blocks == "decoder.x|decoder.y.x"
    assert inner.depth == "decoder_config.num_hidden_layers"
    assert inner.head_dim == "decoder_config.head_dim"
    assert inner.per_layer[0] == "decoder_config.layer_types"
    assert inner.follows == (("decoder_config.a", "decoder_config.b"),)


def test_every_family_names_modules_once_and_covers_its_parts():
    for name in FAMILIES:
        family = FAMILIES.get(name)
        names = [m.name for m in (*family.modules, *family.parts)]
        assert names
        assert len(names) == len(set(names))


def test_has_module_knows_absent_and_empty_places():
    model = nn.Sequential(nn.Linear(1, 1))
    model.register_module("gone", None)
    assert has_module(model, "0")
    assert not has_module(model, "gone")
    assert not has_module(model, "0.weight")
