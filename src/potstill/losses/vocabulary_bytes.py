"""The bytes that the tokens of a vocabulary stand for, whatever way the tokenizer writes them down."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from potstill.errors import InputError
from potstill.losses._vocabularies import BYTE_OF, BYTE_PIECE, WORD_START, vocabulary_kind
from potstill.losses.token_chunks import SpecialToken

ROLES = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")
BOUNDARY = b" \t\n"


def token_bytes(tokenizer: Any) -> list[bytes | SpecialToken]:
    """Return the bytes of every token of a tokenizer, in the order of ids.

    Read are byte-level vocabularies (GPT-2's alphabet, in which "Ġ" is a space), those of sentencepiece ("▁" is a
    space, "<0x0A>" a byte) and WordPiece ("##" goes on with a word; a token without it begins one, with a space before
    it). In a vocabulary of nothing but bytes the first 256 characters are those (ByT5). Of any other the tokens are
    taken as the text they are. The kind is that of the tokenizer's decoder; a tokenizer in pure Python is told by its
    vocabulary.

    Args:
        tokenizer: A tokenizer of transformers or tokenizers: it has ``get_vocab()``.

    Returns:
        Bytes, or a ``SpecialToken`` with its role: "bos", "eos", "pad", "unk", "cls", "sep", "mask", or its name. One
        that is both end and padding, or both beginning and end, is the end. An id that the vocabulary passes over is
        padding.

    Raises:
        InputError: the tokenizer has no vocabulary to look at.
    """
    if not callable(getattr(tokenizer, "get_vocab", None)):
        raise InputError("the tokenizer shows no vocabulary", where="token_bytes", got=type(tokenizer).__name__)
    vocabulary = tokenizer.get_vocab()
    specials = _special_tokens(tokenizer)
    kind = vocabulary_kind(tokenizer)
    rows: list[bytes | SpecialToken] = [SpecialToken("pad")] * (max(vocabulary.values(), default=-1) + 1)
    added = set(_added_words(tokenizer))
    for word, i in vocabulary.items():
        if word in specials:
            rows[i] = SpecialToken(specials[word])
        else:  # words that were added are plain text to every kind
            rows[i] = _READERS["text" if word in added else kind](word)
    return rows


def boundary_mask(tokenizer: Any) -> Tensor:
    """Return which tokens begin where a word can end: with a space, a tab or a newline, or being special.

    What a chunk's likelihood is corrected by (``alm_loss(..., append_boundary=True)``): the chance that the text goes
    on with one of these. A tokenizer whose every token begins in the middle of a word has none but its special tokens;
    for it the correction says nothing.

    Args:
        tokenizer: As for ``token_bytes``.

    Returns:
        Bool tensor ``[V]`` over the tokenizer's ids, True = boundary. An output layer that is padded beyond has no
        boundary there.

    Raises:
        InputError: the tokenizer shows no vocabulary.
    """
    vocabulary = set(tokenizer.get_vocab().values()) if callable(getattr(tokenizer, "get_vocab", None)) else set()
    rows = token_bytes(tokenizer)
    return torch.tensor(
        [i in vocabulary and (isinstance(row, SpecialToken) or row[:1] in _STARTS) for i, row in enumerate(rows)],
        dtype=torch.bool,
    )


_STARTS = {bytes([b]) for b in BOUNDARY}


def _special_tokens(tokenizer: Any) -> dict[str, str]:
    """Return the role of every special token by its name."""
    names = getattr(tokenizer, "all_special_tokens", None)
    if names is None:  # a tokenizer of tokenizers
        decoder = getattr(tokenizer, "get_added_tokens_decoder", dict)()
        names = [token.content for token in decoder.values() if token.special]
    roles = {str(name): str(name) for name in names}
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    roles |= {token.content: token.content for token in added.values() if getattr(token, "special", False)}
    for role in ("pad", "unk", "mask", "sep", "cls", "bos", "eos"):  # of a token with two roles the last one counts
        name = getattr(tokenizer, f"{role}_token", None)
        if name is not None:
            roles[str(name)] = role
    return roles


def _added_words(tokenizer: Any) -> list[str]:
    known = getattr(tokenizer, "get_added_vocab", None)
    if callable(known):
        return list(known())
    return [token.content for token in getattr(tokenizer, "get_added_tokens_decoder", dict)().values()]


def _from_alphabet(word: str) -> bytes:
    if all(c in BYTE_OF for c in word):
        return bytes(BYTE_OF[c] for c in word)
    return word.encode()


def _from_characters(word: str) -> bytes:
    return word.encode("latin-1") if all(ord(c) < 256 for c in word) else word.encode()


def _from_sentencepiece(word: str) -> bytes:
    byte = BYTE_PIECE.match(word)
    return bytes([int(byte[1], 16)]) if byte else word.replace(WORD_START, " ").encode()


def _from_wordpiece(word: str) -> bytes:
    return word[2:].encode() if word.startswith("##") else b" " + word.encode()


_READERS = {
    "bytes": _from_alphabet,
    "sentencepiece": _from_sentencepiece,
    "wordpiece": _from_wordpiece,
    "characters": _from_characters,
    "text": str.encode,
}
