"""Naming of single emoji as a data source of a recipe."""

from __future__ import annotations

from collections.abc import Sequence

from potstill.data.emoji import EmojiDataset
from potstill.data.pictures import PictureOptions, picture_source
from potstill.data.scenes.splits import TRAIN_VENDORS
from potstill.data.sources import DATA, DataSource
from potstill.errors import InputError

EVALUATION_SEED = 0


@DATA.register("emoji")
def build_emoji(
    *,
    concepts: int = 200,
    image_size: int = 32,
    vendors: Sequence[str] | None = None,
    target: str = "name",
    label_noise: float = 0.0,
    labelled: int | float | None = None,
    known: int | None = None,
    views: int = 1,
    augment: str = "light",
    pool: int | None = None,
    junk: float = 0.0,
    odd: float = 0.0,
    masks: bool = False,
    size: int | None = None,
    seed: int = 0,
) -> DataSource:
    """Return single emoji to be named, as a source; see ``PictureCollator`` for the batch.

    The seed changes the training samples only: runs with different seeds are measured on the same pictures. Labels that
    are wrong or missing, junk and odd styles are those of the training set alone.

    Args:
        concepts: How many of the pack's 750, from the front of its fixed order.
        image_size: Side of the pictures, 16 to 128 pixels; the drawings have 64.
        vendors: Drawing styles to train, validate and test on; null = noto and twemoji. "heldout_vendor" is always
            fluent-flat.
        target: name, subgroup, group, or binary (animal or not).
        label_noise: Share of training samples with a wrong label, fixed by sample.
        labelled: Training samples of each class that keep their label (whole number, needs a pool), or the share of
            all (below 1); the rest have -100. null = all.
        known: Only so many concepts, the first ones, have labels; the others are new classes (splits "novel", "all").
        views: Augmented pictures of each training sample, 1 or 2; a batch has first all first, then all second views.
        augment: none, light or strong, on top of each sample's own place, turn and colours.
        pool: Number of different training samples; null = a new one at every step.
        junk: Share of training samples that show a concept outside the task under a label of the task.
        odd: Share of training samples in an odd style (inverted, blurred, grey, faded).
        masks: Also give each training picture's ``class_map``: its label where the drawing is, -100 elsewhere.
        size: Training samples without a pool; null = 1,000,000.

    Raises:
        InputError: An option is out of range, or options do not go together.
    """
    options = PictureOptions(label_noise, labelled, known, views, augment, pool, junk, odd, masks)
    if size is not None and pool is not None:
        raise InputError("is the pool's", where="size", hint="Give size or pool.")
    common = {"concepts": concepts, "image_size": image_size, "target": target}

    def make(split: str, length: int | None, options: PictureOptions) -> EmojiDataset:
        if split == "train":
            return EmojiDataset(split, length or size, seed, vendors=vendors, options=options, **common)
        own = None if split == "heldout_vendor" else vendors
        return EmojiDataset(split, length, EVALUATION_SEED, vendors=own, options=options, **common)

    return picture_source(make, options, target=target, vendors=list(vendors or TRAIN_VENDORS))
