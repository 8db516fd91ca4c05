"""Prompts with a text to write, by domain, for language models."""

from potstill.data.texts.bytes import BYTES, byte_tokenizer
from potstill.data.texts.collate import TextCollator
from potstill.data.texts.dataset import SPLITS, TextDataset
from potstill.data.texts.pack import PACK, TextPack, read_pack

__all__ = ["BYTES", "PACK", "SPLITS", "TextCollator", "TextDataset", "TextPack", "byte_tokenizer", "read_pack"]
