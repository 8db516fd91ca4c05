"""Random numbers as a pure function of (key, index, position): no generator state, no order, no global seed.

The mixing function is SplitMix64's finaliser (Steele, Lea and Flood, 2014), used as a counter hash. NumPy makes the
first words of a whole batch at once; a sample that needs more gets the next ones from the same function.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = 0xFFFFFFFFFFFFFFFF
_READY = 40  # words made for every sample in one go; the mean sample uses about 25


def make_key(*parts: object) -> int:
    """Return 64 bits that depend on every part, the same on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * _FIRST) & _WORD
    x = ((x ^ (x >> 27)) * _SECOND) & _WORD
    return x ^ (x >> 31)


def _mix_array(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
    return x ^ (x >> np.uint64(31))


class Draws:
    """The stream of random choices of one sample."""

    __slots__ = ("_base", "_next", "_words")

    def __init__(self, base: int, words: list[int]):
        self._base, self._words, self._next = base, words, 0

    def below(self, n: int) -> int:
        """Return a whole number in ``[0, n)``, for n up to 2**32."""
        place = self._next
        self._next = place + 1
        if place < _READY:
            word = self._words[place]
        else:
            word = _mix((self._base + (place + 1) * _GOLDEN) & _WORD) >> 32
        return (word * n) >> 32

    def pick(self, items: Sequence[T]) -> T:
        """Return one item, all equally likely."""
        return items[self.below(len(items))]

    def chance(self, percent: int) -> bool:
        """Return True ``percent`` times in a hundred."""
        return self.below(100) < percent

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Return the items in random order."""
        left = list(items)
        for end in range(len(left) - 1, 0, -1):
            other = self.below(end + 1)
            left[end], left[other] = left[other], left[end]
        return left


def draws_for(key: int, indices: Sequence[int]) -> list[Draws]:
    """Return one independent stream for each index."""
    with np.errstate(over="ignore"):
        places = np.asarray(indices, dtype=np.uint64)
        bases = _mix_array(places * np.uint64(_GOLDEN) + np.uint64(key))
        steps = np.arange(1, _READY + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        words = _mix_array(bases[:, None] + steps[None, :]) >> np.uint64(32)
    return [Draws(base, row) for base, row in zip(bases.tolist(), words.tolist())]


def uniforms(key: int, indices: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
    """Return ``count`` numbers in [0, 1) for each index, float64 ``[N, count]``."""
    with np.errstate(over="ignore"):
        places = np.asarray(indices, dtype=np.uint64)
        bases = _mix_array(places * np.uint64(_GOLDEN) + np.uint64(key))
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        words = _mix_array(bases[:, None] + steps[None, :])
    return (words >> np.uint64(11)) * 2.0**-53
