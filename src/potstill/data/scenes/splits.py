"""Splits of the scenes: which styles, pairs of things and languages are seen in training, and which are kept back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from potstill.errors import InputError, suggest

TRAIN_VENDORS = ("noto", "twemoji")
HELDOUT_VENDORS = ("fluent-flat",)
HELDOUT_LANGUAGES = ("es",)
HELDOUT_DIRECTIONS = ("de-fr", "fr-de")
FOUR_TASKS = ("caption", "vqa", "entailment", "nlvr2")


@dataclass(frozen=True, slots=True)
class Split:
    """What a split is made of unless the caller says otherwise.

    Attributes:
        name: Its name; part of the key of the random numbers, so no two splits share scenes.
        size: Default number of samples.
        vendors: Default drawing styles.
        languages: Default languages of captions.
        tasks: Default tasks.
        pairs: "avoid" held-out pairs of concepts in every picture, or "need" at least one.
        directions: Default directions of translation; empty = from English to every other language.
        about: One line for people.
    """

    name: str
    size: int
    vendors: tuple[str, ...] = TRAIN_VENDORS
    languages: tuple[str, ...] = ("en",)
    tasks: tuple[str, ...] = FOUR_TASKS
    pairs: str = "avoid"
    directions: tuple[str, ...] = ()
    about: str = ""


SPLITS = {
    split.name: split
    for split in (
        Split("train", 1_000_000, about="seen styles"),
        Split("validation", 2_000, about="seen styles, unseen scenes; for choosing"),
        Split("test", 2_000, about="seen styles, unseen scenes; for reporting"),
        Split("heldout_vendor", 2_000, vendors=HELDOUT_VENDORS, about="a drawing style never seen in training"),
        Split("heldout_pairs", 2_000, pairs="need", about="things never seen together in one picture"),
        Split(
            "heldout_language",
            2_000,
            languages=HELDOUT_LANGUAGES,
            tasks=("retrieval", "translation"),
            about="captions in a language never seen in training",
        ),
        Split(
            "heldout_directions",
            2_000,
            tasks=("translation",),
            directions=HELDOUT_DIRECTIONS,
            about="translation between languages never paired in training",
        ),
    )
}


def get_split(name: str) -> Split:
    """Return the split of this name.

    Raises:
        InputError: if there is none.
    """
    if name not in SPLITS:
        raise InputError(f'unknown split "{name}"', where="split", hint=suggest(str(name), SPLITS))
    return SPLITS[name]


def is_heldout_pair(one: str, other: str) -> bool:
    """Return whether two concepts (hex codes) are kept apart in training: one pair in ten, by a stable hash."""
    if one == other:
        return False
    text = "+".join(sorted((one, other)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") % 10 == 0


@lru_cache(maxsize=8)
def heldout_partners(hexes: Sequence[str]) -> tuple[frozenset[int], ...]:
    """Return, for each concept, the numbers of those it is never seen with in training."""
    partners: list[set[int]] = [set() for _ in hexes]
    for a, one in enumerate(hexes):
        for b in range(a):
            if is_heldout_pair(one, hexes[b]):
                partners[a].add(b)
                partners[b].add(a)
    return tuple(frozenset(p) for p in partners)
