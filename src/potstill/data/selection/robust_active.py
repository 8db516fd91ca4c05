"""The selector of robust active distillation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from potstill.data.selection.active_distill import inclusion_probabilities, rad_distribution, systematic_sample
from potstill.data.selection.gains import entropy_gains, margin_gains
from potstill.data.selection.selectors import Selector
from potstill.errors import InputError, suggest

GAINS = {"margin": margin_gains, "entropy": entropy_gains}


class RobustActiveSelector(Selector):
    """Buys labels that are informative and yet safe from a teacher who is wrong on part of the pool.

    ``rad_distribution`` over what is left of the pool, with the budget as its smallest support, then b different
    samples by ``systematic_sample``. Without ``n_wrong`` and ``teacher_error`` the teacher is taken to be right, and
    the b samples of largest gain get nearly everything.

    Args:
        gain: "margin" or "entropy".
        seed: Seed of the selector's random numbers, 0 or more.
        eps: The least gain, in (0, 1].

    Raises:
        InputError: an unknown gain, a seed or eps outside its range.

    Source:
        "Robust Active Distillation", ICLR 2023, arXiv 2210.01213. How m is guessed and how b different samples are
        drawn is ours.

    Example:
        >>> import torch
        >>> probs = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.6, 0.4], [0.99, 0.01]])
        >>> RobustActiveSelector(seed=1).select(probs, budget=2, teacher_error=0.25).tolist()
        [0, 2]
    """

    name = "robust_active"

    def __init__(self, gain: str = "margin", seed: int = 0, *, eps: float = 1e-3):
        super().__init__(seed)
        if gain not in GAINS:
            raise InputError(
                "unknown gain", where="gain", expected=", ".join(GAINS), got=gain, hint=suggest(str(gain), GAINS)
            )
        if not 0 < eps <= 1:
            raise InputError("eps does not fit", where="eps", expected="a number in (0, 1]", got=eps)
        self.gain, self.eps = gain, float(eps)

    def settings(self) -> dict[str, Any]:
        """Return gain and eps."""
        return {"gain": self.gain, "eps": self.eps}

    def _choose(self, probs: Tensor, left: Tensor, budget: int, n_wrong: int, vectors: Tensor) -> Tensor:
        result = rad_distribution(GAINS[self.gain](probs, self.eps), n_wrong, min_support=budget)
        return systematic_sample(inclusion_probabilities(result.probs, budget), self._generator.uniform(1)[0])
