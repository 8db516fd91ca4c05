"""May two models' token logits be compared, and over how many rows?"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from potstill.errors import ShapeError

# Read by both tokenizers when their inside cannot be seen: mixed case, digits, accents, spaces, scripts.
_PROBES = ("A red fox, 12 dogs.", "  two  spaces\nnew line", "Grüße aus Köln — ça va?", "東京 не 🦊", "don't I'm 3.14")


def tokenizer_hash(tokenizer: Any) -> str:
    """Return the SHA-256 of everything that decides which ids a text becomes.

    Vocabulary, merges, normaliser, pre-tokeniser, post-processor and added tokens count; truncation, padding, the
    folder it came from and chat templates do not.

    Args:
        tokenizer: A tokenizer of transformers or tokenizers, or any object with ``get_vocab()`` and ``encode()``.

    Returns:
        64 hexadecimal digits.
    """
    return _digest([_pipeline(tokenizer), sorted(tokenizer.get_vocab().items())])


def check_vocabularies(
    student_tokenizer: Any, teacher_tokenizer: Any, student_size: int, teacher_size: int, where: str | None = None
) -> int:
    """Return how many leading rows of the two output layers mean the same tokens, or refuse the pair.

    Models of one family often share a tokenizer and pad their output layers differently (151,936 rows beside
    152,064). Then the common prefix is what a loss may compare; the rest are pads that must not get any probability.
    Tokenizers that cut text differently are refused: the teacher would be fed ids that mean other words to it.

    Args:
        student_tokenizer: Tokenizer of the student.
        teacher_tokenizer: Tokenizer of the teacher.
        student_size: Rows of the student's output layer (or embedding).
        teacher_size: Rows of the teacher's.
        where: Recipe path, for messages.

    Returns:
        The number of shared rows n: slice both logits to ``[..., :n]`` before any softmax. With equal tokenizers it
        is the smaller size; if one tokenizer has more added tokens it ends before the first that the other lacks.

    Raises:
        ShapeError: if a model has fewer rows than its tokenizer needs, the tokenizers cut text differently, or an id
            means two different tokens.
    """
    sides = (("student", student_tokenizer, student_size), ("teacher", teacher_tokenizer, teacher_size))
    sizes = f"student {student_size:,} rows, teacher {teacher_size:,}"
    for side, tokenizer, size in sides:
        needed = max(tokenizer.get_vocab().values(), default=-1) + 1
        if needed > size:
            raise ShapeError(
                f"the {side}'s tokenizer uses {needed:,} ids but its output layer has {size:,} rows ({sizes})",
                where=where, hint="Load each model with its own tokenizer.",
            )  # fmt: skip
    if tokenizer_hash(student_tokenizer) == tokenizer_hash(teacher_tokenizer):
        return min(student_size, teacher_size)

    words_s, words_t = (
        {i: word for word, i in tokenizer.get_vocab().items()} for tokenizer in (student_tokenizer, teacher_tokenizer)
    )
    clash = next((i for i in sorted(words_s.keys() & words_t.keys()) if words_s[i] != words_t[i]), None)
    if clash is not None:
        raise ShapeError(
            f"the tokenizers differ: id {clash} is {words_s[clash]!r} to the student and {words_t[clash]!r} to the "
            f"teacher ({sizes})",
            where=where,
            hint="Use models that share a tokenizer, or a method that distils across tokenizers.",
        )
    if _pipeline(student_tokenizer) != _pipeline(teacher_tokenizer):
        raise ShapeError(
            f"the tokenizers have the same words but cut text differently: normaliser, merges or splitting rules "
            f"are not the same ({sizes})",
            where=where,
            hint="Use models that share a tokenizer, or a method that distils across tokenizers.",
        )
    first_unshared = min(words_s.keys() ^ words_t.keys())
    shared = min(student_size, teacher_size, first_unshared)
    if shared == 0:
        raise ShapeError(f"the tokenizers share no leading ids ({sizes})", where=where)
    return shared


def _pipeline(tokenizer: Any) -> Any:
    """Everything but the list of words, in a form that can be compared and hashed."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):  # pure Python tokenizer: its rules show only in what it does
        return [type(tokenizer).__name__, [list(tokenizer.encode(text)) for text in _PROBES]]
    inside = json.loads(backend.to_str())
    rules = {name: inside.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor")}
    rules["model"] = {name: value for name, value in inside["model"].items() if name != "vocab"}
    if inside["model"].get("type") == "Unigram":  # its scores decide where a text is cut
        rules["scores"] = inside["model"]["vocab"]
    return rules


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
