"""A picture dataset as a data source of a recipe: the half that all of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from potstill.data.pictures.collate import PictureCollator
from potstill.data.pictures.dataset import PictureDataset
from potstill.data.pictures.options import PictureOptions
from potstill.data.sources import DataSource


def picture_source(
    make: Callable[[str, int | None, PictureOptions], PictureDataset], options: PictureOptions, **facts: Any
) -> DataSource:
    """Return the source of a picture dataset.

    Args:
        make: Gives the dataset of a split, of a number of samples (None = all), with options.
        options: What was asked for; the plain training set is the same without augmentation.
        facts: What else the report tells.
    """
    plain = replace(options, augment="none", views=1)
    train = make("train", None, options)
    names = train.classes if options.known is None else train.classes[: options.known]
    return DataSource(
        make=lambda split, length: make(split, length, options),
        collator=PictureCollator(),
        model_fields={
            "image_size": train.image_size,
            "num_channels": train.channels,
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
        },
        facts={
            "classes": len(train.classes),
            "known_classes": len(names),
            "image_size": train.image_size,
            "augment": options.augment,
            "pool": train.pool,
            "train_samples": len(train),
            **facts,
        },
        plain=lambda length: make("train", length, plain),
    )
