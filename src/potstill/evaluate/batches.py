"""Batches for measuring: which samples, which rows belong to which task, and their texts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from potstill.data.sources import fetch
from potstill.errors import InputError, RecipeError, suggest
from potstill.taps.inputs import OWN

IGNORED = -100


def choose_indices(dataset: Any, max_samples: int | None = None, *, seed: int = 0) -> list[int]:
    """Return sample numbers in ascending order: all, or ``max_samples`` drawn without repetition.

    The draw depends on nothing but the sizes and ``seed``, so every model is measured on the same samples. It is a
    draw and not the first ones, nor every n-th, because datasets are often sorted or cycle through their tasks.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise InputError("the dataset cannot be indexed", where="dataset", expected="len() and [i]", got=type(dataset))
    size = len(dataset)
    if max_samples is None or max_samples >= size:
        return list(range(size))
    return sorted(random.Random(seed).sample(range(size), max_samples))


def iterate(
    dataset: Any,
    collator: Callable[[list[Any]], Mapping[str, Any]],
    indices: Sequence[int],
    *,
    batch_size: int = 128,
    device: torch.device | str | None = None,
    tasks: Sequence[str] | None = None,
) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """Yield the samples and the batch made of them, on ``device``; samples of tasks not named are left out.

    A dataset with ``__getitems__`` (as torch's loaders use it) makes the samples of a batch at once.
    """
    if batch_size < 1:
        raise InputError("does not fit", where="batch_size", expected="at least 1", got=batch_size)
    waiting: list[Any] = []
    for start in range(0, len(indices), batch_size):
        samples = fetch(dataset, indices[start : start + batch_size])
        waiting += [s for s in samples if tasks is None or field_of(s, "task") in (None, *tasks)]
        while len(waiting) >= batch_size:
            ready, waiting = waiting[:batch_size], waiting[batch_size:]
            yield ready, to_device(collator(ready), device)
    if waiting:
        yield waiting, to_device(collator(waiting), device)


def field_of(sample: Any, name: str) -> Any:
    """Return a field of a sample, or None if it has no such field (or no fields at all)."""
    return sample.get(name) if isinstance(sample, Mapping) else getattr(sample, name, None)


def to_device(batch: Mapping[str, Any], device: torch.device | str | None) -> dict[str, Any]:
    """Return the batch with its tensors on ``device``; None leaves them where they are."""
    if device is None:
        return dict(batch)
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def device_of(model: nn.Module) -> torch.device:
    """Return where the first parameter of a model lies."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@contextmanager
def measuring(*models: nn.Module) -> Iterator[None]:
    """Put models in eval mode without gradients; afterwards every submodule is in the mode it was in before."""
    before = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, was_training in before:
            module.training = was_training


def label_keys(batch: Mapping[str, Any]) -> dict[str, str]:
    """Return {task: batch key} of the labels in a batch; plain ``labels`` belong to the task "main"."""
    tensors = {k for k, v in batch.items() if isinstance(v, torch.Tensor) and not k.startswith(OWN)}
    found = {k.removesuffix("_labels"): k for k in sorted(tensors) if k.endswith("_labels")}
    return found | ({"main": "labels"} if "labels" in tensors else {})


def rows_of(labels: torch.Tensor) -> torch.Tensor:
    """Return which rows hold at least one label, bool ``[B]``."""
    return (labels != IGNORED).reshape(len(labels), -1).any(1)


def check_tasks(tasks: Sequence[str] | None, found: Sequence[str]) -> None:
    """Refuse a task that no sample belonged to."""
    for task in tasks or ():
        if task not in found:
            raise RecipeError(f'no sample of the task "{task}"', where="tasks", hint=suggest(task, found))


def decoder_of(collator: Any) -> Callable[[Sequence[int]], str] | None:
    """Return a function from token ids to text without special tokens, or None if the collator knows no tokenizer."""
    tokenizer = tokenizer_of(collator)
    if tokenizer is None:
        return None
    return lambda ids: tokenizer.decode([int(i) for i in ids], skip_special_tokens=True).strip()


def tokenizer_of(collator: Any) -> Any:
    """Return the tokenizer of a collator or of its processor, or None."""
    for owner in (collator, getattr(collator, "processor", None)):
        tokenizer = getattr(owner, "tokenizer", None)
        if tokenizer is not None and hasattr(tokenizer, "decode"):
            return tokenizer
    return None


def label_text(labels: torch.Tensor, decode: Callable[[Sequence[int]], str]) -> str:
    """Return the text of one row of shifted caption labels."""
    return decode(labels[labels != IGNORED].tolist())
