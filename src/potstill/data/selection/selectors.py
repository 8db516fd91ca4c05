"""Selectors: each names the samples of an unlabelled pool whose labels are to be bought next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from potstill.data.selection.gains import checked_probs, entropy_gains, margin_gains
from potstill.errors import InputError, RecipeError, ShapeError
from potstill.policies.generator import PolicyGenerator

STATE_VERSION = 1


class Selector:
    """Chooses samples of a pool round by round, none of them twice; a subclass says only how (``_choose``).

    All take the same arguments, so that one word swaps them, and have random numbers of their own.

    Args:
        seed: Seed of the selector's random numbers, 0 or more; the global ones are never touched.

    Raises:
        InputError: any other seed.
    """

    name: ClassVar[str]

    def __init__(self, seed: int = 0):
        self._generator = PolicyGenerator(seed)
        self.seed = int(seed)
        self.queried: list[int] = []
        self._pool: int | None = None

    def select(
        self,
        student_probs: Tensor,
        budget: int,
        n_wrong: int | None = None,
        *,
        teacher_error: float | None = None,
        features: Tensor | None = None,
    ) -> Tensor:
        """Choose samples that were not chosen before, and remember them.

        Args:
            student_probs: The student's probabilities for the **whole** pool, ``(n, C)``, in the same order in every
                round; rows of samples that were chosen before are not looked at (but by k_center).
            budget: How many to choose, 1 to what is left of the pool.
            n_wrong: How many labels of what is left the teacher is taken to get wrong.
            teacher_error: In place of ``n_wrong``, the share of wrong labels, 0 to 1: the teacher's error on labelled
                validation data or, without any, 1 minus its mean calibrated confidence.
            features: Vectors of the pool, ``(n, D)``, for selectors that measure distances; None = the probabilities.

        Returns:
            Indices into the pool, ``(budget,)``, int64, ascending.

        Raises:
            InputError: budget, n_wrong or teacher_error outside its range, or both of them; no probabilities.
            ShapeError: shapes that do not fit, or a pool of another size than in the round before.
        """
        if student_probs.ndim != 2 or (self._pool or len(student_probs)) != len(student_probs):
            raise ShapeError(
                "not the pool of the round before" if self._pool else "no pool",
                where="student_probs",
                expected=f"({self._pool or 'n'}, C)",
                got=list(student_probs.shape),
                hint="Pass the whole pool in every round, also the samples already chosen.",
            )
        if features is not None and (features.ndim != 2 or len(features) != len(student_probs)):
            raise ShapeError(
                "not of the pool", where="features", expected=f"({len(student_probs)}, D)", got=list(features.shape)
            )
        n = len(student_probs)
        is_left = torch.ones(n, dtype=torch.bool)
        is_left[self.queried] = False
        left = is_left.nonzero().squeeze(1)
        if isinstance(budget, bool) or not isinstance(budget, int) or not 1 <= budget <= len(left):
            raise InputError("budget does not fit", where="budget", expected=f"1 to {len(left)}", got=budget)
        probs = checked_probs(student_probs.detach().cpu()[left], "student_probs")
        wrong = self._wrong(len(left), n_wrong, teacher_error)
        vectors = (student_probs if features is None else features).detach().cpu()
        chosen = left[self._choose(probs, left, budget, wrong, vectors.double())].sort().values
        self._pool = n
        self.queried += chosen.tolist()
        return chosen

    def settings(self) -> dict[str, Any]:
        """Return the options in force besides the seed, as plain values."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on exactly, in numbers, text, lists and dicts (so it survives JSON)."""
        return {
            "version": STATE_VERSION,
            "selector": self.name,
            "settings": self.settings(),
            "pool": self._pool,
            "queried": list(self.queried),
            "random": self._generator.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            RecipeError: it is that of another selector, or of other settings.
            InputError: a field is missing or damaged. The selector is then unchanged.
        """
        here = {"version": STATE_VERSION, "selector": self.name, "settings": self.settings()}
        missing = [key for key in (*here, "pool", "queried", "random") if key not in state]
        if missing:
            raise InputError("missing in the saved state", where=f"selection.{missing[0]}")
        for key, value in here.items():
            if state[key] != value:
                raise RecipeError(
                    "the saved state belongs to another selector",
                    where=f"selection.{key}",
                    expected=repr(value),
                    got=state[key],
                )
        pool, queried = state["pool"], state["queried"]
        fits = isinstance(queried, list) and len(set(queried)) == len(queried) and (pool is not None or not queried)
        if not fits or not all(type(i) is int and 0 <= i < pool for i in queried):
            raise InputError("damaged", where="selection.queried", expected=f"different numbers below {pool}")
        generator = PolicyGenerator(self.seed)
        generator.load_state_dict(state["random"])
        self._generator, self._pool, self.queried = generator, pool, list(queried)

    def _choose(self, probs: Tensor, left: Tensor, budget: int, n_wrong: int, vectors: Tensor) -> Tensor:
        """Return ``budget`` positions in ``left``.

        Args:
            probs: Probabilities of what is left, ``(r, C)``, float64.
            left: Its indices in the pool, ``(r,)``.
            budget: How many, 1 to r.
            n_wrong: Wrong labels expected among them, 0 to r - 1.
            vectors: Vectors of the whole pool, ``(n, D)``.
        """
        raise NotImplementedError

    def _wrong(self, left: int, n_wrong: int | None, teacher_error: float | None) -> int:
        if n_wrong is not None and teacher_error is not None:
            raise InputError("one of both is enough", where="n_wrong, teacher_error")
        if n_wrong is not None:
            if isinstance(n_wrong, bool) or not isinstance(n_wrong, int) or not 0 <= n_wrong < left:
                raise InputError("n_wrong does not fit", where="n_wrong", expected=f"0 to {left - 1}", got=n_wrong)
            return n_wrong
        if teacher_error is None:
            return 0
        if not 0 <= teacher_error <= 1:
            raise InputError("teacher_error does not fit", where="teacher_error", expected="0 to 1", got=teacher_error)
        # 7 % of 100 are 7, although 100 * 0.07 is a little more.
        return min(math.ceil(left * teacher_error - 1e-9), left - 1)


class RandomSelector(Selector):
    """Every sample alike: what the others have to beat."""

    name = "random"

    def _choose(self, probs: Tensor, left: Tensor, budget: int, n_wrong: int, vectors: Tensor) -> Tensor:
        return torch.tensor(self._generator.uniform(len(left)), dtype=torch.float64).argsort(stable=True)[:budget]


class MarginSelector(Selector):
    """The samples whose two likeliest classes are closest; a wrong teacher is wrong there most often."""

    name = "margin"

    def _choose(self, probs: Tensor, left: Tensor, budget: int, n_wrong: int, vectors: Tensor) -> Tensor:
        return _largest(margin_gains(probs), budget)


class EntropySelector(Selector):
    """The samples of largest entropy."""

    name = "entropy"

    def _choose(self, probs: Tensor, left: Tensor, budget: int, n_wrong: int, vectors: Tensor) -> Tensor:
        return _largest(entropy_gains(probs), budget)


class KCenterSelector(Selector):
    """Samples far from each other: each time the one farthest from all chosen so far, the first by chance.

    Covers the pool, outliers included. Distances are Euclidean, between ``features`` if they are given.
    """

    name = "k_center"

    def _choose(self, probs: Tensor, left: Tensor, budget: int, n_wrong: int, vectors: Tensor) -> Tensor:
        if not torch.isfinite(vectors).all():
            raise InputError("vectors are not finite", where="features", hint="Those chosen before are looked at, too.")
        points, chosen = vectors[left], []
        nearest = torch.full((len(left),), torch.inf, dtype=torch.float64)
        for known in self.queried:
            nearest = torch.minimum(nearest, torch.linalg.vector_norm(points - vectors[known], dim=-1))
        while len(chosen) < budget:
            is_first = not self.queried and not chosen
            best = self._generator.below(len(left)) if is_first else int(nearest.argmax())
            chosen.append(best)
            nearest = torch.minimum(nearest, torch.linalg.vector_norm(points - points[best], dim=-1))
            nearest[best] = -torch.inf
        return torch.tensor(chosen)


def _largest(gains: Tensor, budget: int) -> Tensor:
    """Return the positions of the largest gains; among equals the first."""
    return gains.argsort(descending=True, stable=True)[:budget]
