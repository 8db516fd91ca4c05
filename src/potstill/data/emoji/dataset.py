"""Single emoji as pictures: which drawing, where, how turned and on which colour is a function of the number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from potstill.data.emoji.targets import classes_for
from potstill.data.pictures import Drawn, PictureDataset, PictureOptions
from potstill.data.pictures.options import check_whole
from potstill.data.pictures.render import WORDS, emoji_look
from potstill.data.scenes.draws import make_key, uniforms
from potstill.data.scenes.pack import load_pack
from potstill.data.scenes.splits import HELDOUT_VENDORS, TRAIN_VENDORS
from potstill.errors import InputError, suggest

_DRAWN_AT = 64  # side of the drawings in the pack: larger pictures enlarge them


@dataclass(frozen=True, slots=True)
class Split:
    """Which concepts and vendors a split shows, and how many samples it has by itself."""

    size: int
    concepts: str = "known"  # "known", "novel" or "all"
    vendors: tuple[str, ...] | None = None  # None = those that are trained on
    about: str = ""


SPLITS = {
    "train": Split(1_000_000, "all", about="seen styles"),
    "validation": Split(2_000, about="seen styles, other places, turns and colours; for choosing"),
    "test": Split(2_000, about="seen styles, other places, turns and colours; for reporting"),
    "heldout_vendor": Split(2_000, vendors=HELDOUT_VENDORS, about="a drawing style never seen in training"),
    "novel": Split(2_000, "novel", about="the concepts without labels"),
    "all": Split(2_000, "all", about="concepts with and without labels"),
}


class EmojiDataset(PictureDataset):
    """Pictures of one emoji each, on a coloured background.

    A sample is a pure function of the arguments, its number and, in a pool with augmentation, the epoch. Every run of
    as many samples as there are concepts holds each concept once.

    Args:
        split: "train", "validation", "test", "heldout_vendor", "novel" or "all".
        size: Number of samples; None = the pool's, 1,000,000 for train without a pool, 2,000 else.
        seed: Another seed is another set of samples.
        concepts: How many concepts, from the front of the pack's fixed order.
        image_size: Side of the pictures in pixels, 16 to 128.
        vendors: Drawing styles; None = the split's own ("noto" and "twemoji"; "fluent-flat" for "heldout_vendor").
        target: "name", "subgroup", "group" or "binary", see ``classes_for``.
        options: Labels, augmentation and pool.

    Attributes:
        concepts: The concepts that can occur, junk not counted.
        vendors: The drawing styles.

    Raises:
        InputError: if an argument is out of range or names something unknown.
        IntegrityError: if the pack is damaged.
    """

    def __init__(
        self,
        split: str = "train",
        size: int | None = None,
        seed: int = 0,
        concepts: int = 200,
        image_size: int = 32,
        vendors: Sequence[str] | None = None,
        target: str = "name",
        options: PictureOptions | None = None,
    ):
        if split not in SPLITS:
            raise InputError(f'unknown split "{split}"', where="split", hint=suggest(str(split), SPLITS))
        about, options, pack = SPLITS[split], options or PictureOptions(), load_pack()
        available = len(pack.concepts)
        check_whole(concepts, "concepts", 2, available)
        check_whole(image_size, "image_size", 16, 128)
        check_whole(seed, "seed")
        class_of, classes = classes_for(pack.concepts[:concepts], target)
        options.check(concepts, len(classes), is_by_thing=target == "name")
        if options.junk and concepts == available:
            raise InputError(
                "every drawing is one of the task's", where="junk", expected=f"concepts below {available}", got=concepts
            )
        known = options.known or concepts
        ranges = {"known": (0, known), "novel": (known, concepts), "all": (0, concepts)}
        self._first, end = ranges[about.concepts]
        if self._first == end:
            raise InputError("all concepts have labels", where=f'split "{split}"', hint="Set known.")
        self._number = end - self._first
        if split != "train":
            options = PictureOptions(augment="none")
        size = (options.pool or about.size) if size is None else min(size, options.pool or size)
        check_whole(size, "size", 1)
        super().__init__(
            ("emoji", split, seed),
            size,
            image_size,
            3,
            class_of,
            classes,
            options,
            kinds=[concept.group for concept in pack.concepts] if target == "name" else None,
        )
        self.split, self.concepts = split, pack.concepts[:concepts]
        self.vendors = (vendors,) if isinstance(vendors, str) else tuple(vendors or about.vendors or TRAIN_VENDORS)
        self._order_key = make_key("emoji", split, seed, "order")
        self._blocks: dict[int, np.ndarray] = {}
        side = min(image_size, _DRAWN_AT)
        self._drawings = torch.stack([drawings_of(name, side) for name in self.vendors])
        self._outside = available - concepts

    def things_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the number of each sample's concept."""
        blocks, places = np.divmod(numbers, self._number)
        things = np.empty(len(numbers), dtype=np.int64)
        for block in np.unique(blocks):
            rows = blocks == block
            things[rows] = self._order(int(block))[places[rows]]
        return self._first + things

    def draw(self, numbers: np.ndarray) -> Drawn:
        """Return the drawings; junk is a concept that is not one of the task's."""
        things, words = self.things_of(numbers), self.sample_words(numbers, WORDS + 2)
        others = len(self.concepts) + np.floor(words[:, 1] * self._outside).astype(np.int64)
        shown = torch.from_numpy(np.where(self.is_junk(numbers), others, things))
        vendors = torch.from_numpy(np.floor(words[:, 0] * len(self.vendors)).astype(np.int64))
        return Drawn(things, self._drawings[vendors, shown], emoji_look(words[:, 2:]))

    def _order(self, block: int) -> np.ndarray:
        if block not in self._blocks:
            if len(self._blocks) > 4096:
                self._blocks.clear()
            luck = uniforms(make_key(self._order_key, block), np.arange(self._number), 1)[:, 0]
            self._blocks[block] = np.argsort(luck, kind="stable")
        return self._blocks[block]


@lru_cache(maxsize=8)
def drawings_of(vendor: str, side: int) -> torch.Tensor:
    """Return all drawings of a vendor as ``paint`` takes them, uint8 ``[concepts, 4, side, side]``."""
    tiles = load_pack().vendor(vendor).tiles
    out = np.empty((len(tiles), side, side, 4), dtype=np.uint8)
    for place, tile in zip(out, tiles):
        small = np.asarray(Image.fromarray(tile).resize((side, side), Image.Resampling.BOX), dtype=np.float32)
        place[..., 3] = small[..., 3]
        place[..., :3] = np.rint(small[..., :3] * (small[..., 3:] / 255))
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()
