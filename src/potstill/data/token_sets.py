"""Tokenizers that need no download: bytes, and BPE trained on texts at hand; and how a recipe names any other."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from potstill.errors import InputError, suggest
from potstill.losses.vocabulary_bytes import byte_alphabet

SPECIAL = ("<pad>", "<bos>", "<eos>")
BUILT_IN = ("bytes",)
FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""A folder that has one of these has a tokenizer."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer that reads bytes: ids 0 to 255 are the bytes themselves, then ``<pad> <bos> <eos>``.

    It reads every text, and adds no special token to any. Texts are several times as long as in a vocabulary of whole
    words: that is the price of an output layer of 259 rows.
    """
    backend = Tokenizer(models.BPE(vocab=byte_alphabet(), merges=[]))
    return _wrapped(backend, use_regex=False)


def train_bpe(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on texts: the same texts in the same order always give the same tokenizer.

    Args:
        texts: What to learn merges from.
        size: Tokens in all: 256 bytes, ``<pad> <bos> <eos>``, and the merges. Fewer if the texts have no more pairs
            that occur twice.

    Raises:
        InputError: ``size`` leaves no room for merges.
    """
    least = 256 + len(SPECIAL) + 1
    if size < least:
        raise InputError("is too small for a byte-level BPE", where="size", expected=f"at least {least}", got=size)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL),
        min_frequency=2,
        show_progress=False,
        initial_alphabet=list(byte_alphabet()),
    )
    backend.train_from_iterator(texts, trainer)
    return _wrapped(backend, use_regex=True)


def load_tokenizer(name_or_path: str | Path, *, where: str = "tokenizer") -> PreTrainedTokenizerBase:
    """Return a tokenizer by name.

    Args:
        name_or_path: "bytes"; the name of a packaged model, a folder, or a name on the model hub.
        where: Path in the recipe, for messages.

    Raises:
        InputError: there is none, or it cannot be read. Code that comes with a tokenizer is never run.
    """
    from potstill.models.load import is_packaged, packaged_models

    name = str(name_or_path)
    if name == "bytes":
        return byte_tokenizer()
    folder = packaged_models()[name] if is_packaged(name) else Path(name).expanduser()
    if folder.is_dir() and not has_tokenizer(folder):
        raise InputError("the folder has no tokenizer", where=where, expected=f"{FILES[0]} or another", got=name)
    try:
        return AutoTokenizer.from_pretrained(str(folder) if folder.is_dir() else name, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exception for a damaged file, transformers various
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            "no tokenizer could be loaded",
            where=where,
            expected='"bytes", a packaged model, a folder or a hub name',
            got=f"{name}: {reason}",
            hint=suggest(name, [*BUILT_IN, *packaged_models()]),
        ) from error


def has_tokenizer(folder: Path) -> bool:
    """True if the folder holds a tokenizer."""
    return any((folder / file).is_file() for file in FILES)


def _wrapped(backend: Tokenizer, *, use_regex: bool) -> PreTrainedTokenizerFast:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=SPECIAL[0],
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        padding_side="right",
        # A text that happens to hold "<eos>" must not end there: special tokens are only ever put in by their ids.
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
