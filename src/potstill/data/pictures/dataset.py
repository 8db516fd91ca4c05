"""Pictures with one class each, as a map-style dataset: all a function of the seed and the sample's number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from potstill.data.pictures.options import PictureOptions
from potstill.data.pictures.render import ODD_STYLES, WORDS, Look, extra_look, hide_squares, odd_style, paint
from potstill.data.scenes.draws import make_key, uniforms
from potstill.data.sources import check_index

UNLABELLED = -100
VALUES_AROUND = 0.5  # mean and standard deviation of the normalisation, in every channel: 0 to 1 becomes -1 to 1


@dataclass
class Drawn:
    """What the samples of some numbers show.

    Attributes:
        things: Number of the thing each was asked for, int ``[N]``.
        drawings: uint8 ``[N, C + 1, S, S]`` as ``paint`` takes them; of junk, of something else.
        look: How they are shown.
    """

    things: np.ndarray
    drawings: torch.Tensor
    look: Look


class PictureDataset(Dataset):
    """Base of the picture datasets: labels, their noise and their lack, augmentation, views, odd styles.

    A subclass says in ``things_of`` which thing a sample is of, and in ``draw`` what it looks like.

    Args:
        key: What the random numbers depend on besides the sample's number: source, split, seed.
        size: Number of samples.
        image_size: Side of the pictures in pixels.
        channels: 1 or 3.
        class_of: Class of each thing.
        classes: Names of the classes.
        options: What is asked for.
        kinds: For each thing, what scores are also given by; None = nothing.
        may_mirror: Whether a picture keeps its meaning in a mirror.

    Attributes:
        classes: Names of the classes, in the order of their numbers.
        pool: Number of different samples, or None.
    """

    def __init__(
        self,
        key: tuple[object, ...],
        size: int,
        image_size: int,
        channels: int,
        class_of: Sequence[int],
        classes: Sequence[str],
        options: PictureOptions,
        *,
        kinds: Sequence[str] | None = None,
        may_mirror: bool = True,
    ):
        self.options, self.image_size, self.channels = options, image_size, channels
        self.pool, self.size = options.pool, size
        self.classes, self.class_of, self.kinds = list(classes), np.asarray(class_of), kinds
        self.may_mirror = may_mirror
        self.epoch = 0
        self._keys = {name: make_key(*key, name) for name in ("sample", "label", "extra")}
        self._has_label: np.ndarray | None = None

    @property
    def is_generated(self) -> bool:
        """True without a pool: every sample is seen once, so a trainer may read in order."""
        return self.pool is None

    def __len__(self) -> int:
        return self.size

    def set_epoch(self, epoch: int) -> None:
        """Augment the samples of a pool as this epoch does; the samples themselves stay as they are."""
        self.epoch = int(epoch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the samples of a batch: ``image`` ``[V, C, H, W]``, ``label``, ``true_class``, ``index``.

        With masks also ``class_map`` ``[V, H, W]``.
        """
        numbers = np.array([check_index(index, self.size) for index in indices], dtype=np.int64)
        drawn = self.draw(numbers)
        is_junk = self.is_junk(numbers)
        labels, truth = self.labels_of(numbers), np.where(is_junk, UNLABELLED, self.class_of[drawn.things])
        views = [self._picture(numbers, drawn, view) for view in range(self.options.views)]
        pictures = torch.stack([picture for picture, _ in views], 1)  # [N, V, C, H, W]
        pictures = pictures.sub_(VALUES_AROUND).div_(VALUES_AROUND)
        columns = zip(pictures.unbind(0), labels.tolist(), truth.tolist(), numbers.tolist())
        samples = [dict(zip(("image", "label", "true_class", "index"), row)) for row in columns]
        if self.options.masks:
            covers = torch.stack([cover for _, cover in views], 1) >= 0.5  # [N, V, H, W]
            for sample, cover in zip(samples, covers):
                sample["class_map"] = torch.where(cover, sample["label"], UNLABELLED)
        if self.kinds is not None:
            for sample, thing in zip(samples, drawn.things.tolist()):
                sample["kind"] = self.kinds[thing]
        return samples

    def things_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the number of the thing that each sample is of."""
        raise NotImplementedError(f"{type(self).__name__} must say what its samples are of")

    def draw(self, numbers: np.ndarray) -> Drawn:
        """Return what the samples show; of those that are junk, something else."""
        raise NotImplementedError(f"{type(self).__name__} must draw its samples")

    def is_junk(self, numbers: np.ndarray) -> np.ndarray:
        """Return which samples show something outside the task, bool ``[N]``."""
        return self._label_words(numbers)[:, 0] < self.options.junk

    def labels_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the labels, wrong and missing ones as the options ask, int ``[N]``."""
        options, words = self.options, self._label_words(numbers)
        things = self.things_of(numbers)
        labels = self.class_of[things].copy()
        known = options.known or len(self.classes)
        others = (labels + 1 + np.floor(words[:, 2] * (known - 1)).astype(np.int64)) % known
        is_noisy = (words[:, 1] < options.label_noise) & ~(words[:, 0] < options.junk)
        labels = np.where(is_noisy, others, labels)
        if isinstance(options.labelled, float):
            labels[words[:, 3] >= options.labelled] = UNLABELLED
        elif options.labelled is not None:
            labels[~self._counted()[numbers]] = UNLABELLED
        if options.known is not None:
            labels[things >= options.known] = UNLABELLED
        return labels

    def _counted(self) -> np.ndarray:
        """Which samples of the pool keep their label: so many of each class, chosen by their random numbers."""
        if self._has_label is None:
            every = np.arange(self.pool)
            classes, luck = self.class_of[self.things_of(every)], self._label_words(every)[:, 3]
            has_label = np.zeros(self.pool, dtype=bool)
            for number in np.unique(classes):
                members = every[classes == number]
                has_label[members[np.argsort(luck[members], kind="stable")[: self.options.labelled]]] = True
            self._has_label = has_label
        return self._has_label

    def sample_words(self, numbers: np.ndarray, count: int) -> np.ndarray:
        """Return the uniform numbers that decide how a sample looks, ``[N, count]``."""
        return uniforms(self._keys["sample"], numbers, count)

    def _label_words(self, numbers: np.ndarray) -> np.ndarray:
        # Columns: junk, noise, the wrong label, labelled, odd, the odd style.
        return uniforms(self._keys["label"], numbers, 6)

    def _picture(self, numbers: np.ndarray, drawn: Drawn, view: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one view of the samples, 0 to 1, ``[N, C, H, W]``, and how far the drawing covers it."""
        options, look = self.options, drawn.look
        if options.augment != "none":
            moment = make_key(self._keys["extra"], self.epoch, view)
            words = uniforms(moment, numbers, WORDS)
            is_coloured = self.channels == 3
            look = extra_look(look, words, options.augment, may_mirror=self.may_mirror, may_colour=is_coloured)
        pictures, cover = paint(drawn.drawings, look, self.image_size)
        if options.odd:
            words = self._label_words(numbers)
            styles = np.where(words[:, 4] < options.odd, np.floor(words[:, 5] * len(ODD_STYLES)), -1)
            for number, style in enumerate(ODD_STYLES):
                rows = torch.from_numpy(styles == number)
                if bool(rows.any()):
                    pictures[rows] = odd_style(pictures[rows], style)
        if options.augment == "strong":
            pictures = hide_squares(pictures, uniforms(make_key(moment, "square"), numbers, 3))
        return pictures, cover
