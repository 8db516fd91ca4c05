"""Switches for all tests (one thread, no hub) and tiny random models of many families. Nothing is downloaded."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# The same examples in every run, nothing kept between runs, and no deadline on a machine that is busy.
settings.register_profile("potstill", derandomize=True, deadline=None, database=None)
settings.load_profile("potstill")

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
TEXT = {**SIZES, "vocab_size": 50, "max_position_embeddings": 12}
IMAGE = {**SIZES, "image_size": 16, "patch_size": 8}
IDS = torch.tensor([[1, 5, 6, 7, 2], [1, 8, 9, 2, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
PIXELS = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)


def _clip():
    from transformers import CLIPConfig, CLIPModel

    text, vision = {**TEXT, "projection_dim": 8, "eos_token_id": 2}, {**IMAGE, "projection_dim": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    return model, {"input_ids": IDS, "attention_mask": MASK, "pixel_values": PIXELS}


def _siglip():
    from transformers import SiglipConfig, SiglipModel

    model = SiglipModel(SiglipConfig(text_config={**TEXT, "projection_size": 16}, vision_config=IMAGE))
    return model, {"input_ids": IDS, "pixel_values": PIXELS}


def _blip(name):
    import transformers

    text = {**TEXT, "encoder_hidden_size": 16, "projection_dim": 8, "bos_token_id": 1, "sep_token_id": 2}
    model = getattr(transformers, name)(transformers.BlipConfig(text_config=text, vision_config=IMAGE))
    batch = {"input_ids": IDS, "attention_mask": MASK, "pixel_values": PIXELS}
    return model, {**batch, "labels": IDS} if name == "BlipForQuestionAnswering" else batch


def _vision_encoder_decoder(decoder):
    from transformers import BertConfig, GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    cross = {"add_cross_attention": True, "is_decoder": True}
    configs = {
        "bert": lambda: BertConfig(**TEXT, **cross),
        "gpt2": lambda: GPT2Config(n_embd=16, n_layer=4, n_head=2, vocab_size=50, n_positions=12, **cross),
    }
    both = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**IMAGE), configs[decoder]())
    return VisionEncoderDecoderModel(both), {"pixel_values": PIXELS, "decoder_input_ids": IDS}


def _t5():
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 4, "num_decoder_layers": 4, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(**sizes, vocab_size=50))
    return model, {"input_ids": IDS, "attention_mask": MASK, "decoder_input_ids": IDS}


def _vl_t5():
    from potstill.models.vl_t5 import VLT5Config, VLT5ForConditionalGeneration

    sizes = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 4, "num_decoder_layers": 4, "num_heads": 2}
    image = {"image_size": 16, "visual_layers": 4, "vocab_size": 50}
    model = VLT5ForConditionalGeneration(VLT5Config.small_scenes(**sizes, **image))
    return model, {"pixel_values": PIXELS, "input_ids": IDS, "attention_mask": MASK, "decoder_input_ids": IDS}


def _bert(name):
    import transformers

    model = getattr(transformers, name)(transformers.BertConfig(**TEXT))
    return model, {"input_ids": IDS, "attention_mask": MASK}


def _vit():
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**IMAGE)), {"pixel_values": PIXELS}


def _vilt():
    from transformers import ViltConfig, ViltModel

    return ViltModel(ViltConfig(**TEXT, **{k: v for k, v in IMAGE.items() if k not in SIZES})), {
        "input_ids": IDS,
        "attention_mask": MASK,
        "pixel_values": PIXELS,
    }


def _llama_like(name):
    import transformers

    config = getattr(transformers, name.replace("ForCausalLM", "Config"))
    model = getattr(transformers, name)(config(**TEXT, num_key_value_heads=1, head_dim=8))
    return model, {"input_ids": IDS, "attention_mask": MASK}


def _coca():
    coca = pytest.importorskip("potstill.models.coca")
    image = {"image_size": 16, "image_width": 16, "image_heads": 2, "image_layers": 4}
    text = {"text_width": 16, "text_heads": 2, "pooler_heads": 2, "text_layers": 4, "multimodal_layers": 4}
    rest = {"vocab_size": 50, "caption_queries": 2, "embed_dim": 8, "task_labels": {"vqa": ["no", "yes"]}}
    config = coca.CocaConfig.small_scenes(**image, **text, **rest)
    return coca.CocaModel(config), {"pixel_values": PIXELS, "input_ids": IDS, "attention_mask": MASK}


_MAKERS = {
    "coca": _coca,
    "clip": _clip,
    "siglip": _siglip,
    "blip": lambda: _blip("BlipModel"),
    "blip-caption": lambda: _blip("BlipForConditionalGeneration"),
    "blip-vqa": lambda: _blip("BlipForQuestionAnswering"),
    "vit-gpt2": lambda: _vision_encoder_decoder("gpt2"),
    "vit-bert": lambda: _vision_encoder_decoder("bert"),
    "t5": _t5,
    "vl_t5": _vl_t5,
    "bert": lambda: _bert("BertModel"),
    "bert-mlm": lambda: _bert("BertForMaskedLM"),
    "vit": _vit,
    "vilt": _vilt,
    "llama": lambda: _llama_like("LlamaForCausalLM"),
    "qwen3": lambda: _llama_like("Qwen3ForCausalLM"),
}


@pytest.fixture(scope="session")
def tiny():
    """``tiny(name) -> (model, batch)``: a tiny random model in eval mode and keyword arguments of its forward."""
    made = {}

    def make(name):
        if name not in made:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(7)
                model, batch = _MAKERS[name]()
                for parameter in model.parameters():  # zeros and ones would hide tensors that were not copied
                    parameter.data += 0.05 * torch.randn_like(parameter)
            made[name] = model.eval(), batch
        return made[name]

    return make


@pytest.fixture(scope="session")
def coca_teacher(tmp_path_factory):
    """Folder of a tiny untrained CoCa made for 12 concepts of the scenes, all four tasks."""
    from potstill.data.scene_source import build_scenes
    from potstill.models.coca import CocaConfig, CocaModel

    sizes = {"stem": "conv", "image_width": 16, "image_heads": 2, "image_layers": 2, "text_width": 16, "text_heads": 2}
    rest = {"text_layers": 2, "multimodal_layers": 2, "max_text_length": 40, "caption_queries": 4, "embed_dim": 16}
    source = build_scenes(concepts=12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = CocaModel(CocaConfig(**sizes, **rest, max_images=2, tie_word_embeddings=True, **source.model_fields))
    folder = tmp_path_factory.mktemp("coca") / "teacher"
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def tiny_run(coca_teacher):
    """Overrides that make the packaged recipes tiny: ``tiny_run("train.steps=4")``."""

    def overrides(*more):
        return [
            *(
                f"teacher.model={coca_teacher}",
                "data.concepts=12",
                "student={builder: depth, layers: 1}",
                "train.batch_size=8",
                "train.steps=12",
            ),
            *("train.checkpoint_every=4", "train.log_every=2", "train.warmup_steps=0", "train.threads=1"),
            *("evaluate.samples=24", "evaluate.shown=2", *more),
        ]

    return overrides
