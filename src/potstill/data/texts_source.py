"""Prompts with a text to write as a data source of a recipe."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from potstill.data.sources import DATA, DataSource
from potstill.data.texts import PACK, TextCollator, TextDataset, read_pack
from potstill.data.token_sets import BUILT_IN, load_tokenizer, train_bpe
from potstill.data.two_tokenizers import TwoTokenizerCollator
from potstill.errors import InputError, RecipeError
from potstill.models.load import find_model

EVALUATION_SEED = 0


@DATA.register("texts")
def build_texts(
    *,
    tokenizer: str | None = None,
    domains: Sequence[str] | None = None,
    max_tokens: int = 256,
    teacher_tokenizer: str | None = None,
    teacher_max_tokens: int | None = None,
    chat: bool = False,
    completions: str | None = None,
    pack: str | None = None,
    written: int = 32,
    size: int | None = None,
    teacher_model: str | None = None,
    seed: int = 0,
) -> DataSource:
    """Return prompts with a text to write as a source; see ``TextCollator`` for the batch.

    The seed changes the order of the training samples only: runs with different seeds are measured on the same texts.

    Args:
        tokenizer: Of a packaged or fetched model, a folder or a name on the hub; "bytes"; or "bpe-1024", a vocabulary of
            so many tokens learnt from the training texts. null = the teacher's.
        domains: Which of the pack's, numbered in this order; null = all: numerics, learning, tables, graphs, algebra,
            words and facts.
        max_tokens: Longest row of prompt and text; longer texts are cut, a prompt without room is an error.
        teacher_tokenizer: What the teacher reads, if that is another: named likewise, or "teacher" for its own. Batches
            are then those of ``TwoTokenizerCollator``, for ``loss: alm``. null = the same.
        teacher_max_tokens: Longest row in the teacher's tokens; null = ``max_tokens``.
        chat: Put prompts into the tokenizer's chat template; with two tokenizers, into each one's that has one.
        completions: File that ``potstill generate`` wrote: its texts are learnt in place of the pack's.
        pack: Folder of other texts, as ``tools/build_text_pack.py`` writes them; null = those shipped.
        written: Held-out prompts whose text is written out when a model is measured.
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
    learnt_from = (row["text"] for row in TextDataset("train", domains=domains, pack=read).rows)
    words = _named_tokenizer(name, learnt_from, "tokenizer")
    if teacher_tokenizer is None:
        collator = own = TextCollator(words, max_tokens, chat=chat, written=written)
    else:
        if teacher_tokenizer == "teacher" and teacher_model is None:
            raise RecipeError("there is no teacher whose tokenizer it could be", where="teacher_tokenizer")
        other_name = teacher_model if teacher_tokenizer == "teacher" else teacher_tokenizer
        learnt_from = (row["text"] for row in TextDataset("train", domains=domains, pack=read).rows)
        other = _named_tokenizer(other_name, learnt_from, "teacher_tokenizer")
        own = TextCollator(words, max_tokens, chat=chat and has_chat(words), written=written)
        collator = TwoTokenizerCollator(
            own, TextCollator(other, teacher_max_tokens or max_tokens, chat=chat and has_chat(other), written=written)
        )
        if chat and not (has_chat(words) or has_chat(other)):
            raise RecipeError("neither tokenizer has a chat template", where="chat", hint="Set chat: false.")

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

    texts = None
    train = make("train", None)
    for one in (own, getattr(collator, "teacher", own)):
        one.prompt_ids([row["prompt"] for row in train.rows])  # an error here and not at step 700
    if train.empty:
        warnings.warn(f"{train.empty} of {train.all_samples} training texts are empty and left out", stacklevel=2)
    return DataSource(
        make=make,
        collator=collator,
        processor=words,
        model_fields=_fields(own),
        teacher_fields=None if collator is own else _fields(collator.teacher),
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


def _named_tokenizer(name: str, texts: Iterable[str], where: str) -> Any:
    if name in BUILT_IN:
        return load_tokenizer(name)
    size = re.fullmatch(r"bpe-(\d+)", name)
    if size is None:
        return load_text_tokenizer(name)
    try:
        return train_bpe(texts, int(size[1]))
    except InputError as error:
        error.where = where
        raise


def has_chat(tokenizer: Any) -> bool:
    """True if the tokenizer knows how to write a dialogue."""
    return bool(getattr(tokenizer, "chat_template", None))


def load_text_tokenizer(name: str) -> Any:
    """Return the tokenizer in the folder of a model.

    Raises:
        RecipeError: There is none of that name, or it cannot be read.
    """
    from transformers import AutoTokenizer

    folder = find_model(name, where="tokenizer")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exception for a damaged file, each class its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecipeError(
            f"no tokenizer can be read there ({reason})",
            where="tokenizer",
            expected="a packaged or fetched model, a folder or a hub name",
            got=name,
        ) from error
