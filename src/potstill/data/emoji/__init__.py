"""Naming of single emoji: pictures of one drawing each."""

from potstill.data.emoji.dataset import SPLITS, EmojiDataset
from potstill.data.emoji.targets import TARGETS, classes_for

__all__ = ["SPLITS", "TARGETS", "EmojiDataset", "classes_for"]
