"""Chunks of text that two tokenizers cover exactly, each with whole tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from potstill.errors import InputError

_BLANK = b" \t\n\r\v\f"


@dataclass(frozen=True)
class SpecialToken:
    """A token that stands for no text: what it does, such as "bos", "eos", "pad", or its name if nobody says."""

    role: str


Token = bytes | str | SpecialToken
PAD = SpecialToken("pad")


def align_chunks(teacher_tokens: Sequence[Token], student_tokens: Sequence[Token]) -> list[tuple[int, int, int, int]]:
    """Cut a text that two tokenizers have read into the finest chunks that both cover with whole tokens.

    Both are read byte by byte: wherever a token ends at the same byte on both sides, a chunk ends. White space in front
    of the whole text is passed over where the sides differ in it, because some tokenizers put a space there. Special
    tokens are chunks of their own where both sides have one of the same role; one that only one side has belongs to no
    chunk, nor does padding. Spans whose bytes differ (a tokenizer that lower-cases, say) are left out, and so is the
    end of a text that one side no longer has. Both lists have to be in one form: pieces of a vocabulary that writes a
    space as "Ġ" or "▁" are made bytes first (``token_bytes``).

    Args:
        teacher_tokens: Bytes of every token, or text, which counts by its UTF-8 bytes.
        student_tokens: The same of the student, of the same text.

    Returns:
        ``(ts, te, ss, se)`` for every chunk from left to right: it is ``teacher_tokens[ts:te]`` and
        ``student_tokens[ss:se]``.

    Raises:
        InputError: a token is neither bytes, text nor a ``SpecialToken``.

    Source:
        Minixhofer et al., "Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching", NeurIPS 2025,
        arXiv 2503.20083, section 3, as in the authors' code.

    Example:
        >>> align_chunks([" He", "llo", "?"], [" Hello", "?"])
        [(0, 2, 0, 1), (2, 3, 1, 2)]
    """
    teacher, student = (
        _as_bytes(tokens, side) for tokens, side in ((teacher_tokens, "teacher"), (student_tokens, "student"))
    )
    _match_leading_blank(teacher, student)
    chunks: list[tuple[int, int, int, int]] = []
    i = j = 0
    while i < len(teacher) and j < len(student):
        special_t, special_s = isinstance(teacher[i], SpecialToken), isinstance(student[j], SpecialToken)
        if special_t or special_s:
            if teacher[i] == student[j] and teacher[i] != PAD:
                chunks.append((i, i + 1, j, j + 1))
            # Only the side with a special token goes on, so that a BOS the other lacks costs nothing.
            i, j = i + special_t, j + special_s
            continue
        start_t, start_s = i, j
        bytes_t, bytes_s = teacher[i], student[j]
        i, j = i + 1, j + 1
        while len(bytes_t) != len(bytes_s):
            tokens, at = (teacher, i) if len(bytes_t) < len(bytes_s) else (student, j)
            if at == len(tokens) or isinstance(tokens[at], SpecialToken):
                break  # the text of one side ends here
            if tokens is teacher:
                bytes_t, i = bytes_t + tokens[at], i + 1
            else:
                bytes_s, j = bytes_s + tokens[at], j + 1
        if bytes_t == bytes_s:
            chunks.append((start_t, i, start_s, j))
    return chunks


def _as_bytes(tokens: Sequence[Token], side: str) -> list[bytes | SpecialToken]:
    found: list[bytes | SpecialToken] = []
    for token in tokens:
        if isinstance(token, str):
            token = token.encode("utf-8", "surrogatepass")
        if not isinstance(token, bytes | SpecialToken):
            raise InputError(f"not a token of the {side}", where="align_chunks", expected="bytes or text", got=token)
        found.append(token)
    return found


def _match_leading_blank(teacher: list[bytes | SpecialToken], student: list[bytes | SpecialToken]) -> None:
    """Take the white space off the front of both texts if there is more of it on one side."""
    if _leading_blank(teacher) == _leading_blank(student):
        return
    for tokens in (teacher, student):
        for n, token in enumerate(tokens):
            if isinstance(token, bytes):
                tokens[n] = token.lstrip(_BLANK)
                if tokens[n]:
                    break


def _leading_blank(tokens: list[bytes | SpecialToken]) -> bytes:
    text = b""
    for token in tokens:
        if isinstance(token, bytes):
            text += token
            if text.lstrip(_BLANK):
                break
    return text[: len(text) - len(text.lstrip(_BLANK))]
