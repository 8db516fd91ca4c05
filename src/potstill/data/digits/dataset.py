"""Handwritten digits as pictures with a class: a fixed pool, split once and for all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from potstill.data.digits.pack import load_digits
from potstill.data.pictures import Drawn, PictureDataset, PictureOptions
from potstill.data.pictures.options import check_whole
from potstill.data.pictures.render import Look
from potstill.data.scenes.draws import make_key, uniforms
from potstill.errors import InputError, suggest

TARGETS = ("digit", "binary")
_PARTS = {"train": (0, 7_000), "validation": (7_000, 8_000), "test": (8_000, 10_000)}


@dataclass(frozen=True, slots=True)
class Split:
    """Which of the three parts of the digits a split shows, and which of their classes."""

    part: str
    digits: str = "known"  # "known", "novel" or "all"
    odd: float = 0.0
    about: str = ""


SPLITS = {
    "train": Split("train", "all", about="7,000 digits"),
    "validation": Split("validation", about="1,000 others; for choosing"),
    "test": Split("test", about="2,000 others; for reporting"),
    "heldout_style": Split("test", odd=1.0, about="those of test, inverted, blurred, black and white or faded"),
    "novel": Split("test", "novel", about="the digits without labels"),
    "all": Split("test", "all", about="digits with and without labels"),
}


class DigitDataset(PictureDataset):
    """Real digits in one channel, ink white on black.

    A sample is a pure function of the arguments, its number and, with augmentation, the epoch.

    Args:
        split: "train", "validation", "test", "heldout_style", "novel" or "all".
        size: Number of samples; None = all there are.
        seed: Order of the training digits, and so which of them are in a smaller pool; wrong and missing labels.
        image_size: Side of the pictures in pixels, 16 to 64; the digits have 28.
        target: "digit", or "binary" for even (0) and odd (1).
        options: Labels, augmentation and pool (7,000 at most).

    Raises:
        InputError: if an argument is out of range or names something unknown.
        IntegrityError: if the shipped digits are damaged.
    """

    def __init__(
        self,
        split: str = "train",
        size: int | None = None,
        seed: int = 0,
        image_size: int = 28,
        target: str = "digit",
        options: PictureOptions | None = None,
    ):
        if split not in SPLITS:
            raise InputError(f'unknown split "{split}"', where="split", hint=suggest(str(split), SPLITS))
        if target not in TARGETS:
            raise InputError(f'unknown target "{target}"', where="target", hint=suggest(str(target), TARGETS))
        about, options = SPLITS[split], options or PictureOptions()
        check_whole(image_size, "image_size", 16, 64)
        check_whole(seed, "seed")
        class_of, classes = list(range(10)), [str(digit) for digit in range(10)]
        if target == "binary":
            class_of, classes = [n % 2 for n in range(10)], ["even", "odd"]
        every = len(_part("train"))
        if options.pool is None:
            options = replace(options, pool=every)
        options.check(10, len(classes), is_by_thing=target == "digit")
        if options.pool > every:
            raise InputError("out of range", where="pool", expected=f"at most {every} digits", got=options.pool)
        known = options.known or 10
        chosen = _part(about.part)
        if split == "train":
            luck = uniforms(make_key("digits", "order", seed), np.arange(every), 1)[:, 0]
            chosen = chosen[np.argsort(luck, kind="stable")][: options.pool]
        else:
            low, high = {"known": (0, known), "novel": (known, 10), "all": (0, 10)}[about.digits]
            if low == high:
                raise InputError("all digits have labels", where=f'split "{split}"', hint="Set known.")
            digits = load_digits()[1][chosen]
            chosen = chosen[(digits >= low) & (digits < high)]
            options = PictureOptions(augment="none", odd=about.odd, pool=len(chosen))
        size = len(chosen) if size is None else min(size, len(chosen))
        check_whole(size, "size", 1)
        super().__init__(("digits", split, seed), size, image_size, 1, class_of, classes, options, may_mirror=False)
        self.split = split
        pictures, self._things = load_digits()[0][chosen], load_digits()[1][chosen]
        self._drawings = torch.from_numpy(pictures)[:, None].expand(-1, 2, -1, -1)  # the ink covers itself

    def things_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return which digit each sample is."""
        return self._things[numbers]

    def draw(self, numbers: np.ndarray) -> Drawn:
        """Return the digits; junk is made of the quarters of four, each in the wrong corner."""
        drawings, is_junk = self._drawings[torch.from_numpy(numbers)], self.is_junk(numbers)
        if is_junk.any():
            four = np.floor(self.sample_words(numbers[is_junk], 4) * len(self._things)).astype(np.int64)
            drawings[torch.from_numpy(is_junk)] = self._scrambled(four)
        return Drawn(self.things_of(numbers), drawings, Look.plain(len(numbers), 1))

    def _scrambled(self, four: np.ndarray) -> torch.Tensor:
        half = self._drawings.shape[-1] // 2
        first, second, third, fourth = (self._drawings[torch.from_numpy(column)] for column in four.T)
        top = torch.cat([first[..., half:, half:], second[..., half:, :half]], -1)
        bottom = torch.cat([third[..., :half, half:], fourth[..., :half, :half]], -1)
        return torch.cat([top, bottom], -2)


@lru_cache(maxsize=3)
def _part(name: str) -> np.ndarray:
    """Return which digits belong to a part: a fixed shuffle of all, cut in three."""
    luck = uniforms(make_key("digits", "parts"), np.arange(len(load_digits()[1])), 1)[:, 0]
    return np.argsort(luck, kind="stable")[slice(*_PARTS[name])]
