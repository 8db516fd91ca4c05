"""Tiny image models and pictures for the objectives that need them; nothing is downloaded."""

import torch
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from potstill.data.sources import DataSource

PLAIN = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def vit(width=16, layers=3, seed=0, classes=4, side=8, heads=2):
    sizes = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": layers}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = ViTConfig(
            image_size=side, patch_size=2, num_labels=classes, num_attention_heads=heads, initializer_range=0.3,
            **sizes, **PLAIN,
        )  # fmt: skip
        return ViTForImageClassification(config)


def resnet(width=8, seed=0, classes=4):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = {"embedding_size": 4, "hidden_sizes": [4, width], "depths": [1, 1], "layer_type": "basic"}
        return ResNetForImageClassification(ResNetConfig(num_labels=classes, **sizes))


class Pictures(torch.utils.data.Dataset):
    """A sample is a function of its number."""

    def __init__(self, size=24, side=8, classes=4):
        self.size, self.side, self.classes = size, side, classes

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        draws = torch.Generator().manual_seed(index)
        picture = torch.randn(3, self.side, self.side, generator=draws)
        return {"pixel_values": picture, "labels": index % self.classes, "sample_id": index}


def collate(samples):
    keys = samples[0]
    return {
        key: torch.stack([s[key] for s in samples])
        if key == "pixel_values"
        else torch.tensor([s[key] for s in samples])
        for key in keys
    }


def pictures(size=24, side=8, classes=4):
    return DataSource(make=lambda split, length: Pictures(length or size, side, classes), collator=collate)


def batch(n=4, side=8, start=0):
    data = Pictures(start + n, side)
    return collate([data[i] for i in range(start, start + n)])
