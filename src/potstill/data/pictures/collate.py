"""From pictures with a class to the batch a classifier takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


class PictureCollator:
    """Puts samples into one batch of tensors, whose rows are the pictures.

    For B samples of V views there are R = V · B rows, first all first views, then all second ones:
        ``pixel_values`` float32 ``[R, C, H, W]`` in [-1, 1];
        ``labels`` long ``[R]``: the class as the training set says, -100 where it says none;
        ``true_class`` long ``[R]``: the class as it is, also where the label is wrong or missing; -100 for junk. For
        measuring and for nothing else;
        ``sample_id`` long ``[R]``: which sample of the pool (or of the stream);
        ``view`` long ``[R]``: 0 or 1;
        ``class_map`` long ``[R, H, W]`` if the samples carry one: the label where the drawing is, -100 elsewhere.
    """

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch."""
        pictures = torch.stack([sample["image"] for sample in samples], 1)  # [V, B, C, H, W]
        views, rows = pictures.shape[:2]
        columns = {"labels": "label", "true_class": "true_class", "sample_id": "index"}
        batch = {"pixel_values": pictures.flatten(0, 1)}
        batch |= {
            key: torch.tensor([sample[name] for sample in samples]).repeat(views) for key, name in columns.items()
        }
        if "class_map" in samples[0]:
            batch["class_map"] = torch.stack([sample["class_map"] for sample in samples], 1).flatten(0, 1)
        return batch | {"view": torch.arange(views).repeat_interleave(rows)}
