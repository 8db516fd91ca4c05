"""Batches of prompts and texts for a causal language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from potstill.errors import InputError

IGNORED = -100


class TextCollator:
    """Batches samples as prompt and text in one row, padded on the right.

    The batch is ``input_ids``, ``attention_mask`` and ``labels`` ``[B, L]``, ``domain`` and ``sample_id`` ``[B]``.
    Labels are the tokens of the text and its end token, -100 at prompt and padding; not shifted, so objectives say
    ``shift: true``. The row is the tokens of the prompt followed by those of the text, each cut into tokens for itself,
    so that training sees the same boundary as writing does. Nothing in it is random. A sample with ``ended`` False (a
    text that was cut off when it was written) has no end token.

    Args:
        tokenizer: With an end token. Without a padding token its end token pads; the mask tells them apart.
        max_tokens: Longest row (L). A longer text is cut there, and then has no end token; a prompt that leaves no
            room is an error.
        chat: Put the prompt into the tokenizer's chat template, as what the user says; otherwise a line end follows it.
        written: Samples of a split whose text is written out in full when a model is measured.

    Raises:
        InputError: The tokenizer has no end token or no chat template, or later a text is empty or a prompt too long.
    """

    metrics = {"main": "text"}  # noqa: RUF012 - what evaluate counts at ``labels``

    def __init__(self, tokenizer: Any, max_tokens: int = 256, *, chat: bool = False, written: int = 32):
        if tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no end token", where="tokenizer", got=type(tokenizer).__name__)
        if chat and not getattr(tokenizer, "chat_template", None):
            raise InputError("the tokenizer has no chat template", where="chat", hint="Set chat: false.")
        if max_tokens < 2:
            raise InputError("does not fit", where="max_tokens", expected="at least 2", got=max_tokens)
        if written < 0:
            raise InputError("does not fit", where="written", expected="at least 0", got=written)
        self.tokenizer, self.max_tokens, self.chat, self.written = tokenizer, max_tokens, chat, written
        self.end = tokenizer.eos_token_id
        self.padding = self.end if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch."""
        prompts = self.prompt_ids([sample["prompt"] for sample in samples])
        texts = self.tokenizer([sample["text"] for sample in samples], add_special_tokens=False).input_ids
        rows, labels = [], []
        for sample, prompt, text in zip(samples, prompts, texts):
            if not text:
                raise InputError("the text to write is empty", where=f"sample {sample.get('id', sample.get('index'))}")
            end = [self.end] if sample.get("ended", True) else []
            row = [*prompt, *text, *end][: self.max_tokens]
            rows.append(row)
            labels.append([IGNORED] * len(prompt) + row[len(prompt) :])
        return {
            "input_ids": pad(rows, self.padding),
            "attention_mask": pad([[1] * len(row) for row in rows], 0),
            "labels": pad(labels, IGNORED),
            "domain": torch.tensor([sample["domain"] for sample in samples]),
            "sample_id": torch.tensor([sample["index"] for sample in samples]),
        }

    def prompt_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each prompt as they stand before its text.

        Raises:
            InputError: A prompt leaves no room for a text.
        """
        if self.chat:
            said = [self._as_chat(prompt) for prompt in prompts]
            encoded = self.tokenizer(said, add_special_tokens=False).input_ids
        else:
            encoded = self.tokenizer([f"{prompt}\n" for prompt in prompts]).input_ids
            # Some tokenizers end every text; this one goes on.
            encoded = [ids[:-1] if ids and ids[-1] == self.end else ids for ids in encoded]
        for prompt, ids in zip(prompts, encoded):
            if len(ids) >= self.max_tokens:
                raise InputError(
                    f'a prompt is longer than the context: "{prompt[:80]}"',
                    where="max_tokens",
                    expected=f"at most {self.max_tokens - 1} tokens",
                    got=len(ids),
                    hint="Raise max_tokens, or leave the prompt out.",
                )
        return encoded

    def prompts(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return ``input_ids`` and ``attention_mask`` ``[B, P]`` of the prompts alone, padded on the left to write."""
        rows = self.prompt_ids([sample["prompt"] for sample in samples])
        return {
            "input_ids": pad(rows, self.padding, left=True),
            "attention_mask": pad([[1] * len(row) for row in rows], 0, left=True),
        }

    def _as_chat(self, prompt: str) -> str:
        said = [{"role": "user", "content": prompt}]
        return self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)


def pad(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> torch.Tensor:
    """Return rows of different length as one tensor ``[B, L]``."""
    padded = torch.full((len(rows), max(map(len, rows))), value, dtype=torch.long)
    for i, row in enumerate(rows):
        if len(row):
            padded[i, padded.shape[1] - len(row) if left else 0 :][: len(row)] = torch.tensor(row)
    return padded
