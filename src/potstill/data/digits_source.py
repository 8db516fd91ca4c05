"""Handwritten digits as a data source of a recipe."""

from __future__ import annotations

from potstill.data.digits import DigitDataset
from potstill.data.pictures import PictureOptions, picture_source
from potstill.data.sources import DATA, DataSource

EVALUATION_SEED = 0


@DATA.register("digits")
def build_digits(
    *,
    image_size: int = 28,
    target: str = "digit",
    label_noise: float = 0.0,
    labelled: int | float | None = None,
    known: int | None = None,
    views: int = 1,
    augment: str = "light",
    pool: int | None = None,
    junk: float = 0.0,
    odd: float = 0.0,
    masks: bool = False,
    seed: int = 0,
) -> DataSource:
    """Return handwritten digits as a source; see ``PictureCollator`` for the batch.

    The seed changes the training set only: runs with different seeds are measured on the same digits. Labels that are
    wrong or missing, junk and odd styles are those of the training set alone.

    Args:
        image_size: Side of the pictures, 16 to 64 pixels; the digits have 28.
        target: digit, or binary (even or odd).
        label_noise: Share of training samples with a wrong label, fixed by sample.
        labelled: Training samples of each class that keep their label (whole number), or the share of all (below 1);
            the rest have -100. null = all.
        known: Only so many digits, from 0, have labels; the others are new classes (splits "novel" and "all").
        views: Augmented pictures of each training sample, 1 or 2; a batch has first all first, then all second views.
        augment: none, light or strong; never mirrored.
        pool: Number of training samples, at most 7,000; null = all.
        junk: Share of training samples that are quarters of four digits, under a label.
        odd: Share of training samples in an odd style (inverted, blurred, black and white, faded).
        masks: Also give each training picture's ``class_map``: its label where the drawing is, -100 elsewhere.

    Raises:
        InputError: An option is out of range, or options do not go together.
    """
    options = PictureOptions(label_noise, labelled, known, views, augment, pool, junk, odd, masks)

    def make(split: str, length: int | None, options: PictureOptions) -> DigitDataset:
        own = seed if split == "train" else EVALUATION_SEED
        return DigitDataset(split, length, own, image_size=image_size, target=target, options=options)

    return picture_source(make, options, target=target)
