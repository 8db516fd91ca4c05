"""How vocabularies write text down."""

from __future__ import annotations

import re
from typing import Any

BYTE_PIECE = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")
WORD_START = "\u2581"  # sentencepiece writes a space so


def byte_alphabet() -> dict[str, int]:
    """Return GPT-2's alphabet: the character that stands for each byte, printable ones for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


BYTE_OF = byte_alphabet()


def vocabulary_kind(tokenizer: Any) -> str:
    """Return how a vocabulary writes text down: "bytes", "sentencepiece", "wordpiece", "characters" or "text"."""
    vocabulary = tokenizer.get_vocab()
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    rules = f"{getattr(backend, 'decoder', None)!r}{getattr(backend, 'pre_tokenizer', None)!r}"
    if "ByteLevel" in rules:
        return "bytes"
    if "WordPiece" in rules or any(word.startswith("##") for word in vocabulary):
        return "wordpiece"
    if "Metaspace" in rules or any(WORD_START in word or BYTE_PIECE.match(word) for word in vocabulary):
        return "sentencepiece"
    if all(word in vocabulary for word in BYTE_OF):
        return "bytes"
    if all(chr(b) in vocabulary for b in range(256)):
        return "characters"
    return "text"
