"""Whether a model is as sure as it is right."""

from __future__ import annotations

import torch

BINS = 15


class Bins:
    """Sums per confidence bin, so that nothing has to be kept per token."""

    def __init__(self, bins: int = BINS):
        self.counts, self.hits, self.mass = (torch.zeros(bins, dtype=torch.float64) for _ in range(3))

    def add(self, confidence: torch.Tensor, is_right: torch.Tensor) -> None:
        """Count predictions: the probability of each, ``[N]``, and whether it was right."""
        confidence = confidence.double().cpu()
        index = (confidence * len(self.counts)).ceil().long().sub(1).clamp(0, len(self.counts) - 1)
        self.counts.index_add_(0, index, torch.ones_like(confidence))
        self.hits.index_add_(0, index, is_right.double().cpu())
        self.mass.index_add_(0, index, confidence)

    def error(self) -> float:
        """Return the expected calibration error of all that was counted."""
        return float((self.hits - self.mass).abs().sum() / self.counts.sum().clamp_min(1))


def calibration_error(confidence: torch.Tensor, is_right: torch.Tensor, *, bins: int = BINS) -> float:
    """Return the expected calibration error: mean over samples of |accuracy - confidence| of their bin.

    Args:
        confidence: Probability of the predicted class, ``[N]``, in [0, 1].
        is_right: Whether it was the true one, bool ``[N]``.
        bins: Number of bins of equal width.

    Source:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.
    """
    counts = Bins(bins)
    counts.add(confidence, is_right)
    return counts.error()
