"""A few samples with picture, question and every model's answer, for people to look at."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from potstill.errors import InputError
from potstill.evaluate.batches import (
    choose_indices,
    decoder_of,
    device_of,
    iterate,
    label_keys,
    label_text,
    measuring,
    rows_of,
)
from potstill.evaluate.metrics import can_write, output_name, write_texts
from potstill.evaluate.predictions import outputs_of
from potstill.evaluate.tasks import WRITTEN, kind_of
from potstill.evaluate.texts import text_answers
from potstill.taps import lookup
from potstill.taps.inputs import model_inputs

SMALL = 96  # pictures below this many pixels are shown doubled


def sample_answers(
    models: Mapping[str, nn.Module],
    dataset: Any,
    collator: Callable[[list[Any]], Mapping[str, Any]],
    n: int = 10,
    *,
    looked_at: int = 240,
    seed: int = 1,
    inputs: Iterable[str] | None = None,
) -> list[dict[str, Any]]:
    """Choose samples over all tasks and write down what every model answers.

    The choice is deterministic and not flattering: among ``looked_at`` samples drawn by ``seed``, every other one of a
    task is one that the last model gets wrong, as long as there are any. So the list is no measure of accuracy.

    Args:
        models: Name -> model; the last one (the student) decides which samples count as wrong.
        dataset: Map-style.
        collator: Samples to a batch.
        n: How many.
        looked_at: Size of the draw to choose from.
        seed: Another seed shows other samples.
        inputs: Batch keys that all models take; None = those the ``forward`` of each names.

    Returns:
        ``{"task", "images", "text", "truth", "answers"}`` each: pictures as PNG data URIs, ``text`` the question,
        claim or prompt (None for captions), ``answers`` by model name. Tasks that no model has an output for do not
        appear. Texts behind prompts are simply drawn: hardly any is right word for word.
    """
    if not models:
        raise InputError("no model to ask", where="models")
    if n < 1:
        return []
    if getattr(collator, "metrics", {}).get("main") == "text":
        return text_answers(models, dataset, collator, n, seed=seed)
    decode = decoder_of(collator)
    keys = None if inputs is None else list(inputs)
    picks = {name: model_inputs(model, keys) for name, model in models.items()}
    entries: dict[str, list[dict[str, Any]]] = {}
    device = device_of(next(iter(models.values())))
    indices = choose_indices(dataset, max(looked_at, n), seed=seed)
    with measuring(*models.values()):
        for _, batch in iterate(dataset, collator, indices, batch_size=60, device=device):
            outputs = {name: outputs_of(model, picks[name](batch)) for name, model in models.items()}
            for task, key in label_keys(batch).items():
                rows = rows_of(batch[key]).nonzero()[:, 0]
                if len(rows):
                    entries.setdefault(task, []).extend(_entries(models, outputs, batch, task, key, rows, decode))
    last = list(models)[-1]
    chosen = {task: _alternate(found, last) for task, found in sorted(entries.items()) if found}
    return _deal(chosen, n)


def png_uri(pixels: torch.Tensor) -> str:
    """Return a picture ``[3, H, W]`` or ``[1, H, W]`` in [-1, 1] as a PNG data URI; small ones are doubled."""
    from PIL import Image

    array = ((pixels.float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)
    if max(image.size) < SMALL:
        image = image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _entries(
    models: Mapping[str, nn.Module],
    outputs: Mapping[str, Any],
    batch: Mapping[str, Any],
    task: str,
    key: str,
    rows: torch.Tensor,
    decode: Callable[[Sequence[int]], str] | None,
) -> list[dict[str, Any]]:
    labels = batch[key][rows]
    kind = kind_of(key, batch[key])
    is_written = kind in WRITTEN
    if kind == "language_model" or (is_written and decode is None):
        return []
    answers: dict[str, list[str]] = {}
    for name, model in models.items():
        if is_written:
            if can_write(model):
                answers[name] = write_texts(model, batch, rows, labels, decode)
            continue
        try:
            logits = lookup(outputs[name], output_name(outputs[name], task, batch[key]))[rows]
        except InputError:
            continue
        classes = _classes(model, task, logits.shape[-1])
        answers[name] = [classes[i] for i in logits.argmax(-1).tolist()]
    if not answers:
        return []
    if is_written:
        truths = [label_text(row, decode) for row in labels]
    else:
        classes = _classes(models[next(iter(answers))], task, int(labels.max()) + 1)
        truths = [classes[i] for i in labels.tolist()]
    found = []
    for i, row in enumerate(rows.tolist()):
        found.append(
            {
                "task": task,
                "images": pictures_of(batch, row),
                "text": None if kind == "caption" else _text(batch, row, decode),
                "truth": truths[i],
                "answers": {name: texts[i] for name, texts in answers.items()},
            }
        )
    return found


def _classes(model: nn.Module, task: str, size: int) -> list[str]:
    """Return the names of the classes of a task: of its own head, else of the model, else numbers."""
    config = getattr(model, "config", None)
    own = (getattr(config, "task_labels", None) or {}).get(task)
    if own:
        return list(own)
    names = getattr(config, "id2label", None) or {}
    return [str(names.get(i, i)) for i in range(size)]


def pictures_of(batch: Mapping[str, Any], row: int) -> Any:
    """Return the pictures of a row that are there, ``[3, H, W]`` each."""
    pixels = batch.get("pixel_values")
    if pixels is None:
        return []
    pixels = pixels[row] if pixels.ndim == 5 else pixels[row : row + 1]  # [I, 3, H, W]
    mask = batch.get("image_mask")
    is_there = [True] * len(pixels) if mask is None else mask[row].bool().tolist()
    return [picture for picture, there in zip(pixels, is_there) if there]


def _text(batch: Mapping[str, Any], row: int, decode: Callable[[Sequence[int]], str] | None) -> str | None:
    if decode is None or "input_ids" not in batch:
        return None
    ids, mask = batch["input_ids"][row], batch.get("attention_mask")
    return decode((ids if mask is None else ids[mask[row].bool()]).tolist())


def _alternate(entries: list[dict[str, Any]], last: str) -> list[dict[str, Any]]:
    """Order the samples of a task: wrong, right, wrong, right, … then whatever is left."""
    wrong = [e for e in entries if last in e["answers"] and e["answers"][last] != e["truth"]]
    right = [e for e in entries if not any(e is w for w in wrong)]
    paired = [e for both in zip(wrong, right) for e in both]
    return paired + wrong[len(right) :] + right[len(wrong) :]


def _deal(chosen: Mapping[str, list[dict[str, Any]]], n: int) -> list[dict[str, Any]]:
    """Take one sample of each task in turn until there are n, then list them by task, with the pictures encoded."""
    counts = dict.fromkeys(chosen, 0)
    while sum(counts.values()) < n and any(counts[t] < len(chosen[t]) for t in chosen):
        for task in chosen:
            if sum(counts.values()) < n and counts[task] < len(chosen[task]):
                counts[task] += 1
    picked = [entry for task, count in counts.items() for entry in chosen[task][:count]]
    return [{**entry, "images": [png_uri(picture) for picture in entry["images"]]} for entry in picked]
