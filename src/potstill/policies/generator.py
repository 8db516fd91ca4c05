"""The random numbers of a policy: its own stream, the same on every machine, saved as plain text."""

from __future__ import annotations

import math
import operator

import numpy as np

from potstill.errors import InputError


class PolicyGenerator:
    """A stream of random numbers that nothing outside the policy can move.

    Only the raw words of PCG64 are taken from numpy, because numpy promises the same words for ever, while its normal
    distribution may change between versions: a run resumed after an upgrade must play the same arms.

    Args:
        seed: A whole number, 0 or more.

    Raises:
        InputError: for any other seed.
    """

    def __init__(self, seed: int = 0):
        try:
            self._words = np.random.PCG64(operator.index(seed))
        except (TypeError, ValueError) as error:
            raise InputError("not a seed", where="seed", expected="a whole number, 0 or more", got=seed) from error

    def uniform(self, size: int) -> list[float]:
        """Return numbers in [0, 1), each a multiple of 2^-53."""
        return [(word >> 11) * 2.0**-53 for word in self._words.random_raw(size).tolist()]

    def normal(self, size: int) -> list[float]:
        """Return standard normal numbers by the Box-Muller formula (two uniform numbers for each)."""
        uniform = self.uniform(2 * size)
        return [
            math.sqrt(-2.0 * math.log(1.0 - radius)) * math.cos(2.0 * math.pi * angle)
            for radius, angle in zip(uniform[::2], uniform[1::2])
        ]

    def below(self, limit: int) -> int:
        """Return a whole number from 0 to ``limit - 1``, all equally likely."""
        return int(self.uniform(1)[0] * limit)

    def state_dict(self) -> dict[str, str]:
        """Return the state as text: it has 128-bit numbers, which many JSON readers would round."""
        state = self._words.state["state"]
        return {"kind": "PCG64", "state": hex(state["state"]), "increment": hex(state["inc"])}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Go on from a saved state.

        Raises:
            InputError: if it is not one that ``state_dict`` wrote.
        """
        try:
            if state["kind"] != "PCG64":
                raise ValueError(state["kind"])
            words = {"state": int(state["state"], 16), "inc": int(state["increment"], 16)}
            if not all(0 <= word < 2**128 for word in words.values()):
                raise ValueError(words)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("not the state of a policy's generator", where="random", got=state) from error
        self._words.state = {"bit_generator": "PCG64", "state": words, "has_uint32": 0, "uinteger": 0}
