"""Prompts with a text to write as a data source of a recipe."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.data.sources import DATA, DataSource
from potstill.data.texts import BYTES, PACK, TextCollator, TextDataset, byte_tokenizer, read_pack
from potstill.errors import RecipeError
from potstill.models.load import find_model

EVALUATION_SEED = 0


@DATA.register("texts")
def build_texts(
    *,
    tokenizer: str | None = None,
    domains: Sequence[str] | None = None,
    max_tokens: int = 256,
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
        tokenizer: Of a packaged or fetched model, a folder or a name on the hub; null = the teacher's; "bytes" = one token
            a byte.
        domains: Which of the pack's, numbered in this order; null = all: numerics, learning, tables, graphs, algebra,
            words and facts.
        max_tokens: Longest row of prompt and text; longer texts are cut, a prompt without room is an error.
        chat: Put prompts into the tokenizer's chat template.
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
    collator = TextCollator(load_text_tokenizer(name), max_tokens, chat=chat, written=written)
    read = read_pack(PACK if pack is None else Path(pack).expanduser())

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
    collator.prompt_ids([row["prompt"] for row in train.rows])  # an error here and not at step 700
    if train.empty:
        warnings.warn(f"{train.empty} of {train.all_samples} training texts are empty and left out", stacklevel=2)
    words = collator.tokenizer
    fields = {"vocab_size": len(words), "eos_token_id": words.eos_token_id}
    if words.bos_token_id is not None:
        fields["bos_token_id"] = words.bos_token_id
    if collator.padding != collator.end:  # as padding, the end token would never be learnt where it is read
        fields["pad_token_id"] = collator.padding
    return DataSource(
        make=make,
        collator=collator,
        processor=words,
        model_fields=fields,
        facts={
            "domains": list(train.domains),
            "tokenizer": str(name),
            "max_tokens": max_tokens,
            "chat": chat,
            "train_samples": len(train),
            "empty_texts": train.empty,
        },
    )


def load_text_tokenizer(name: str) -> Any:
    """Return the tokenizer in the folder of a model, or that of single bytes.

    Raises:
        RecipeError: There is none of that name, or it cannot be read.
    """
    from transformers import AutoTokenizer

    if name == BYTES:
        return byte_tokenizer()
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
