"""Prompts with a text to write as a data source of a recipe."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.data.generation import read_completions
from potstill.data.sources import DATA, DataSource
from potstill.data.spans import SpanCollator
from potstill.data.texts import PACK, TextCollator, TextDataset, read_pack
from potstill.data.token_sets import load_tokenizer
from potstill.data.two_tokenizers import TwoTokenizerCollator
from potstill.errors import RecipeError

EVALUATION_SEED = 0
TEACHER = "teacher"
"""As ``teacher_tokenizer``: that of the recipe's teacher."""


@DATA.register("texts")
def build_texts(
    *,
    tokenizer: str | None = None,
    domains: Sequence[str] | None = None,
    max_tokens: int = 256,
    teacher_tokenizer: str | None = None,
    teacher_max_tokens: int | None = None,
    teacher_chat: bool = False,
    chat: bool = False,
    completions: str | None = None,
    pack: str | None = None,
    written: int = 32,
    spans: bool = False,
    size: int | None = None,
    teacher_model: str | None = None,
    seed: int = 0,
) -> DataSource:
    """Return prompts with a text to write as a source; see ``TextCollator`` for the batch.

    The seed changes the order of the training samples only: runs with different seeds are measured on the same texts.

    Args:
        tokenizer: Of a packaged or fetched model, a folder or a name on the hub; "bytes" = one token a byte; "bpe-1024"
            = a vocabulary of so many tokens learnt from the training texts; null = the teacher's.
        domains: Which of the pack's, numbered in this order; null = all: numerics, learning, tables, graphs, algebra,
            words and facts.
        max_tokens: Longest row of prompt and text; longer texts are cut, a prompt without room is an error.
        teacher_tokenizer: What the teacher reads, if that is another: named likewise, or "teacher" for its own. Batches
            are then those of ``TwoTokenizerCollator``, for ``loss: alm``. null = the same.
        teacher_max_tokens: Longest row in the teacher's tokens; null = ``max_tokens``.
        teacher_chat: Put the teacher's prompts into its chat template, where it reads other tokens.
        chat: Put prompts into the tokenizer's chat template.
        completions: File that ``potstill generate`` wrote: its texts are learnt in place of the pack's.
        pack: Folder of other texts, as ``tools/build_text_pack.py`` writes them; null = those shipped.
        written: Held-out prompts whose text is written out when a model is measured.
        spans: Also give ``span_ids``: which tokens form a phrase, for "span_correlation".
        size: Number of training samples; null = all.
        teacher_model: Filled in by the run.

    Raises:
        RecipeError: No tokenizer is named, or it cannot be read.
        InputError: An option is out of range, a prompt is longer than ``max_tokens``, or there is no text to learn.
        IntegrityError: A file of texts is damaged or belongs to other data.
    """
    name = tokenizer or teacher_model
    if name is None:
        raise RecipeError("there is no teacher whose tokenizer it could be", where="tokenizer", hint="Name one.")
    read = read_pack(PACK if pack is None else Path(pack).expanduser())
    learnt_from = [row["text"] for row in TextDataset("train", domains=domains, pack=read).rows]
    words = load_tokenizer(name, texts=learnt_from)
    collator: Any = TextCollator(words, max_tokens, chat=chat, written=written)
    own = other = collator
    if teacher_tokenizer is not None:
        if teacher_tokenizer == TEACHER and teacher_model is None:
            raise RecipeError("there is no teacher whose tokenizer it could be", where="teacher_tokenizer")
        other_name = teacher_model if teacher_tokenizer == TEACHER else teacher_tokenizer
        read_by_teacher = load_tokenizer(other_name, texts=learnt_from, where="teacher_tokenizer")
        other = TextCollator(read_by_teacher, teacher_max_tokens or max_tokens, chat=teacher_chat, written=written)
        collator = TwoTokenizerCollator(own, other)

    def make(split: str, length: int | None) -> TextDataset:
        own = {"written": texts} if split == "train" else {}
        return TextDataset(
            split,
            (length or size) if split == "train" else length,
            seed if split == "train" else EVALUATION_SEED,
            domains=domains,
            pack=read,
            **own,
        )

    texts = None if completions is None else read_completions(completions)
    train = make("train", None)
    for one in (own, other):
        for domain in train.domains:  # of all splits: an error here, and not at step 700 or when all is trained
            one.prompt_ids([row["prompt"] for row in read.rows[domain]])
    if train.empty:
        warnings.warn(f"{train.empty} of {train.all_samples} training texts are empty and left out", stacklevel=2)
    return DataSource(
        make=make,
        collator=SpanCollator(collator, words) if spans else collator,
        processor=words,
        model_fields=_fields(own),
        teacher_fields=_fields(other),
        facts={
            "domains": list(train.domains),
            "tokenizer": str(name),
            "max_tokens": max_tokens,
            **({} if teacher_tokenizer is None else {"teacher_tokenizer": str(other_name)}),
            "chat": chat,
            "train_samples": len(train),
            "empty_texts": train.empty,
        },
    )


def _fields(collator: TextCollator) -> dict[str, int]:
    words = collator.tokenizer
    fields = {"vocab_size": len(words), "eos_token_id": words.eos_token_id}
    if words.bos_token_id is not None:
        fields["bos_token_id"] = words.bos_token_id
    if collator.padding != collator.end:  # as padding, the end token would never be learnt where it is read
        fields["pad_token_id"] = collator.padding
    return fields
