"""How a recipe names a tokenizer: that of a model, or one that needs no download."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from potstill.data.texts.bytes import BYTES, SPECIAL, byte_tokenizer
from potstill.errors import InputError, RecipeError
from potstill.losses._vocabularies import byte_alphabet
from potstill.models.load import find_model

FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""A folder that has one of these has a tokenizer."""
_BPE = re.compile(r"bpe-(\d{1,7})")


def load_tokenizer(name: str | Path, *, texts: Iterable[str] | None = None, where: str = "tokenizer") -> Any:
    """Return a tokenizer by name. Code that comes with one is never run.

    Args:
        name: "bytes"; "bpe-1024", a vocabulary of so many tokens learnt from ``texts``; or the name of a packaged or
            fetched model, a folder, or a name on the model hub.
        texts: What a vocabulary is learnt from.
        where: Path in the recipe, for messages.

    Raises:
        RecipeError: There is none of that name, or it cannot be read.
    """
    if str(name) == BYTES:
        return byte_tokenizer()
    learnt = _BPE.fullmatch(str(name))
    if learnt is not None and texts is not None:
        try:
            return train_bpe(texts, int(learnt[1]))
        except InputError as error:
            error.where = where
            raise
    folder = find_model(name, where=where)
    form = '"bytes", "bpe-1024", a packaged or fetched model, a folder or a hub name'
    if not has_tokenizer(folder):
        raise RecipeError("no tokenizer can be read there (it has none)", where=where, expected=form, got=name)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exception for a damaged file, each class its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecipeError(f"no tokenizer can be read there ({reason})", where=where, expected=form, got=name) from error


def has_tokenizer(folder: Path) -> bool:
    """True if the folder holds a tokenizer."""
    return any((folder / file).is_file() for file in FILES)


def train_bpe(texts: Iterable[str], size: int) -> Any:
    """Train a byte-level BPE on texts: the same texts in the same order always give the same tokenizer.

    Args:
        texts: What to learn merges from.
        size: Tokens in all: 256 bytes, those of padding and end, and the merges. There are fewer if no more pairs occur
            twice.

    Raises:
        InputError: ``size`` leaves no room for merges.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = SPECIAL[:2]
    least = 256 + len(special) + 1
    if size < least:
        raise InputError("is too small for a byte-level BPE", where="size", expected=f"at least {least}", got=size)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=list(byte_alphabet()),
        special_tokens=[AddedToken(word, special=True) for word in special],
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=special[0],
        eos_token=special[1],
        padding_side="right",
        clean_up_tokenization_spaces=False,
        # A text that happens to hold "<|end|>" must not end there: special tokens are only ever put in by their ids.
        split_special_tokens=True,
    )
