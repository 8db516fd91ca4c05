"""A tiny CoCa and a mixed batch for it."""

from __future__ import annotations

import pytest
import torch

from potstill.models.coca import CocaConfig, CocaModel

TASKS = {"vqa": ["red", "green", "blue"], "nlvr2": ["false", "true"]}


@pytest.fixture
def tiny_config():
    def make(**changes) -> CocaConfig:
        sizes = {"image_size": 16, "image_width": 16, "image_heads": 2, "image_layers": 2, "text_width": 24}
        more = {"text_heads": 2, "text_layers": 2, "multimodal_layers": 2, "caption_queries": 3, "embed_dim": 12}
        rest = {"vocab_size": 30, "max_text_length": 12, "task_labels": TASKS}
        return CocaConfig.small_scenes(**{**sizes, **more, **rest, **changes})

    return make


@pytest.fixture
def tiny_model(tiny_config):
    def make(seed: int = 0, **changes) -> CocaModel:
        torch.manual_seed(seed)
        model = CocaModel(tiny_config(**changes))
        with torch.no_grad():  # far from the start, where differences would be small
            for parameter in model.parameters():
                if parameter.ndim:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        return model.eval()

    return make


@pytest.fixture
def batch():
    """Two caption rows, one question and one picture pair; rows end at 7, 4, 5 and 6 of 7 positions."""
    generator = torch.Generator().manual_seed(1)
    ends = torch.tensor([7, 4, 5, 6])
    mask = torch.arange(7) < ends[:, None]
    ids = torch.randint(3, 30, (4, 7), generator=generator)
    ids[:, 0] = 1
    labels = torch.full((4, 7), -100)
    labels[:2, :-1] = ids[:2, 1:]
    labels[0, 6] = labels[1, 3] = 2
    labels[~mask] = -100
    images = torch.zeros(4, 2, dtype=torch.bool)
    images[:, 0] = images[3, 1] = True
    return {
        "pixel_values": torch.randn(4, 2, 3, 16, 16, generator=generator),
        "image_mask": images,
        "input_ids": ids * mask,
        "attention_mask": mask.long(),
        "caption_labels": labels,
        "vqa_labels": torch.tensor([-100, -100, 2, -100]),
        "nlvr2_labels": torch.tensor([-100, -100, -100, 1]),
        "sample_id": torch.arange(4),
    }


@pytest.fixture
def inputs(batch):
    """The batch without labels: what the model is asked at use."""
    return {key: value for key, value in batch.items() if not key.endswith("_labels") and key != "sample_id"}


@pytest.fixture
def captured():
    """``captured(model, path)`` is a list that collects what the module there returns."""

    def collect(model, path):
        store = []
        model.get_submodule(path).register_forward_hook(lambda module, args, output: store.append(output))
        return store

    return collect
