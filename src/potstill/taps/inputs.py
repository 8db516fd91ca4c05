"""Which entries of a batch a model is given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

OWN = "teacher_"
"""Begins the keys of a batch that are for teachers alone."""


def model_inputs(
    model: nn.Module, keys: Iterable[str] | None = None, *, labels: bool = False, own: str = ""
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return a function that picks from a batch what ``model.forward`` takes.

    By default these are the entries that ``forward`` names, without labels: distillation does not need the model's own
    loss, and computing it would be wasted work. Encoder-decoders get ``labels``, because they derive their decoder
    input from them. ``keys`` sets the list by hand; ``labels=True`` passes every label entry. An entry whose name
    begins with ``own`` ("teacher_") is given in place of the one it is named after: pictures of another size, texts cut
    by another tokenizer.
    """
    parameters = inspect.signature(model.forward).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    by_hand = None if keys is None else frozenset(keys)
    needs_labels = labels or getattr(getattr(model, "config", None), "is_encoder_decoder", False)

    def pick(batch: Mapping[str, Any]) -> dict[str, Any]:
        if own:
            batch = {**batch, **{k[len(own) :]: v for k, v in batch.items() if k.startswith(own)}}
        if by_hand is not None:
            return {k: v for k, v in batch.items() if k in by_hand}
        return {
            k: v
            for k, v in batch.items()
            if (needs_labels and is_label(k) and (open_ended or k in parameters))
            or (k in parameters and not is_label(k))
        }

    return pick


def is_label(key: str) -> bool:
    """True for the batch keys that hold targets: ``labels`` and ``<task>_labels``, but not those of a teacher alone."""
    return (key == "labels" or key.endswith("_labels")) and not key.startswith(OWN)
