"""Real handwritten digits, 28 by 28 pixels."""

from potstill.data.digits.dataset import SPLITS, DigitDataset

__all__ = ["SPLITS", "DigitDataset"]
