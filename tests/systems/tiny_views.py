"""Blobs of brightness in two noisy views, some classes without labels: the smallest data for novel class discovery."""

import torch

from potstill.data.files_source import source_from_datasets

KNOWN, NOVEL, SIDE = 3, 2, 8
ENCODER = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}


class Blobs(torch.utils.data.Dataset):
    def __init__(self, size, views, hide=True, seed=0):
        self.size, self.views, self.hide, self.seed = size, views, hide, seed

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        draws = torch.Generator().manual_seed(1000 * self.seed + index)
        true = index % (KNOWN + NOVEL)
        picture = torch.zeros(self.views, 1, SIDE, SIDE)
        picture[..., true : true + 3, 2 * (true % 3) : 2 * (true % 3) + 3] = 1.0
        picture = picture + 0.1 * torch.randn(picture.shape, generator=draws)
        label = -100 if self.hide and true >= KNOWN else true
        return {"image": picture, "label": label, "true_class": true, "index": index}


def collate(samples):
    pictures = torch.stack([s["image"] for s in samples], 1)
    batch = {"pixel_values": pictures.flatten(0, 1)}
    for key, name in (("labels", "label"), ("true_class", "true_class"), ("sample_id", "index")):
        batch[key] = torch.tensor([s[name] for s in samples]).repeat(len(pictures))
    return batch


def blobs(size=48, views=2):
    names = [str(i) for i in range(KNOWN)]
    fields = {"image_size": SIDE, "num_channels": 1, "num_labels": KNOWN}
    fields |= {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    splits = {"train": Blobs(size, views), "test": Blobs(20, 1, seed=1), "all": Blobs(30, 1, hide=False, seed=1)}
    return source_from_datasets(splits, collate, model_fields=fields)
