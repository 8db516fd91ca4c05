"""Prompts with a text to write, by domain, for language models."""

from potstill.data.texts.collate import TextCollator
from potstill.data.texts.dataset import SPLITS, TextDataset
from potstill.data.texts.pack import PACK, TextPack, read_pack

__all__ = ["PACK", "SPLITS", "TextCollator", "TextDataset", "TextPack", "read_pack"]
