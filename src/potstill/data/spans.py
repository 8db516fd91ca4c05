"""Which tokens of a text form a phrase: for losses that look at neighbours within one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from potstill.errors import InputError

IGNORED = -100
NO_SPAN = -1

# English words that begin a phrase: articles and other determiners, prepositions, conjunctions, pronouns, auxiliaries.
_FUNCTION_WORDS = (
    "a an the this that these those my your his her its our their some any no every each either neither both all "
    "another such what which whose of in on at by for with from to into onto upon over under above below between "
    "among through during before after since until about against without within along across behind beside near "
    "off out up down around toward towards via per than as like and or but nor so yet if then because although "
    "though while whereas unless whether when where why how who whom i you he she it we they me him us them "
    "myself yourself itself ourselves themselves am is are was were be been being do does did have has had having "
    "will would shall should can could may might must not there here"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_CUT = "\ufffd"  # stands for bytes that are no whole letter


def phrase_spans(text: str) -> list[tuple[int, int]]:
    """Return where the phrases of a text begin and end, in characters.

    A phrase is a run of function words followed by a run of other words; anything but spaces between two words ends it.
    The list of function words is English; in other languages, and in code, phrases are what stands between signs.

    Source:
        The rule of Liberman and Church, "Text analysis and word pronunciation in text-to-speech synthesis", 1992. The
        paper on span correlation (arXiv 2407.10068) uses a trained chunker, whose data no package carries along.

    Example:
        >>> text = "The old man sat on a chair, and slept."
        >>> [text[start:end] for start, end in phrase_spans(text)]
        ['The old man sat', 'on a chair', 'and slept']
    """
    spans: list[tuple[int, int]] = []
    end, has_content = 0, False
    for word in _WORD.finditer(text):
        is_function = word.group().lower() in FUNCTION_WORDS
        goes_on = spans and not text[end : word.start()].strip(" ") and not (is_function and has_content)
        if goes_on:
            spans[-1] = spans[-1][0], word.end()
            has_content |= not is_function
        else:
            spans.append((word.start(), word.end()))
            has_content = not is_function
        end = word.end()
    return spans


def token_pieces(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Return what each token adds to the text, from the ids alone, for any tokenizer of transformers.

    A token is read behind the one before it, as some tokenizers drop a space at the start of a text. A letter that is
    cut into several tokens comes with the last of them.
    """
    ids = list(ids)
    alone = _read([[i] for i in ids], tokenizer)
    pairs = _read([list(pair) for pair in pairwise(ids)], tokenizer)
    pieces = alone[:1] + [pair[len(first) :] for first, pair in zip(alone, pairs)]
    kept: list[int] = []
    for i, text in enumerate(alone):
        if _CUT not in text:
            kept = []
            continue
        kept.append(ids[i])
        known = len(_read([kept[:-1]], tokenizer)[0].rstrip(_CUT))
        whole = _read([kept], tokenizer)[0]
        pieces[i] = whole.rstrip(_CUT)[known:]
        kept = kept if whole.endswith(_CUT) else []
    return pieces


def _read(rows: list[list[int]], tokenizer: Any) -> list[str]:
    if getattr(tokenizer, "is_fast", False):
        return tokenizer.backend_tokenizer.decode_batch(rows, False)
    return [tokenizer.decode(row, skip_special_tokens=False, clean_up_tokenization_spaces=False) for row in rows]


def span_ids_of(
    ids: Sequence[int], tokenizer: Any, spans: Callable[[str], Sequence[tuple[int, int]]] = phrase_spans
) -> list[int]:
    """Return the number of the span that each token of a text belongs to, -1 for none.

    A token belongs to the span its first character but spaces stands in. Special tokens belong to none and end one.

    Example:
        >>> class Letters:
        ...     is_fast, all_special_ids = False, [0]
        ...     def decode(self, ids, **options): return "".join(chr(i) for i in ids)
        >>> span_ids_of([*map(ord, "an ox, a"), 0], Letters())
        [0, 0, 0, 0, 0, -1, -1, 1, -1]
    """
    special = set(tokenizer.all_special_ids)
    pieces = [" \n" if i in special else piece for i, piece in zip(ids, token_pieces(ids, tokenizer))]
    text = "".join(pieces)
    of_character = [NO_SPAN] * len(text)
    for number, (start, end) in enumerate(spans(text)):
        of_character[start:end] = [number] * (end - start)
    found, place = [], 0
    for i, piece in zip(ids, pieces):
        first = place + len(piece) - len(piece.lstrip(" "))
        if first == place + len(piece):  # spaces alone; or nothing, the start of a letter that comes next
            first = place
        found.append(NO_SPAN if i in special or first == len(text) else of_character[first])
        place += len(piece)
    return found


class SpanCollator:
    """Adds to the batches of another collator which tokens form a phrase: ``span_ids`` ``[B, L]``, -1 = none.

    For the objective "span_correlation". Only tokens with a label are looked at. Texts that a student wrote later, in
    place of the data's, get theirs by ``remade``.

    Whatever else the other collator has can be asked of this one.

    Args:
        collator: Makes batches with ``input_ids`` and ``labels`` ``[B, L]``.
        tokenizer: That of the ids.
        spans: ``spans(text)`` returns begin and end of each span in characters, in order and apart.

    Raises:
        InputError: The batch lacks ids or labels.
    """

    def __init__(
        self,
        collator: Callable[[Sequence[Any]], dict[str, Any]],
        tokenizer: Any,
        spans: Callable[[str], Sequence[tuple[int, int]]] = phrase_spans,
    ):
        self.collator, self.tokenizer, self.spans = collator, tokenizer, spans

    @property
    def remade(self) -> dict[str, Callable[[Mapping[str, Any]], Tensor]]:
        """What goes with the tokens, and how it is made from a batch: for texts that a student wrote."""
        return {"span_ids": lambda batch: mark_spans(batch, self.tokenizer, self.spans)}

    def __call__(self, samples: Sequence[Any]) -> dict[str, Any]:
        """Return the batch with its spans."""
        batch = self.collator(samples)
        return {**batch, **{key: make(batch) for key, make in self.remade.items()}}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "collator":  # of a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self.collator, name)


def mark_spans(
    batch: Mapping[str, Any],
    tokenizer: Any,
    spans: Callable[[str], Sequence[tuple[int, int]]] = phrase_spans,
) -> Tensor:
    """Return the spans of a batch's labelled tokens, ``[B, L]``.

    Raises:
        InputError: The batch lacks ids or labels.
    """
    for key in ("input_ids", "labels"):
        if key not in batch:
            raise InputError(f'the batch has no "{key}"', where="spans", hint="Use a data source of texts.")
    found = torch.full(batch["input_ids"].shape, NO_SPAN)
    for i, (ids, labels) in enumerate(zip(batch["input_ids"].cpu(), batch["labels"].cpu())):
        kept = labels != IGNORED
        found[i][kept] = torch.tensor(span_ids_of(ids[kept].tolist(), tokenizer, spans), dtype=torch.long)
    return found.to(batch["input_ids"].device)
