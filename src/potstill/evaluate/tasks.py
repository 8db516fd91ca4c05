"""How well a model does each task of a dataset."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from potstill.errors import InputError
from potstill.evaluate import texts as _texts  # noqa: F401 - registers its metric
from potstill.evaluate.batches import (
    check_tasks,
    choose_indices,
    decoder_of,
    device_of,
    field_of,
    iterate,
    label_keys,
    measuring,
    rows_of,
)
from potstill.evaluate.metrics import METRICS, Metric, ObjectsOf, View, can_write, output_name
from potstill.evaluate.predictions import outputs_of
from potstill.evaluate.retrieval import retrieval_scores
from potstill.taps import lookup
from potstill.taps.inputs import model_inputs

__all__ = ["METRICS", "WRITTEN", "evaluate_retrieval", "evaluate_tasks", "kind_of", "main_score"]

# Tasks whose labels, if they are tokens, are a text to be written, and what is counted in it.
_TEXTS = {
    "caption": "caption",
    **dict.fromkeys(("vqa", "entailment", "nlvr2", "answer"), "answer"),
    **dict.fromkeys(("translation", "grounding"), "name_list"),
}
WRITTEN = frozenset(_TEXTS.values())


def evaluate_tasks(
    model: nn.Module,
    dataset: Any,
    collator: Callable[[list[Any]], Mapping[str, Any]],
    *,
    tasks: Sequence[str] | None = None,
    batch_size: int = 128,
    device: torch.device | str | None = None,
    max_samples: int | None = None,
    retrieval: bool = False,
    objects_of: ObjectsOf | None = None,
    inputs: Iterable[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Measure a model on the samples of a dataset, task by task.

    A task is a label entry of the batch: ``<task>_labels``, or ``labels`` (then called "main"). Classes are read from
    ``task_logits.<task>``, or from ``logits`` for models with one head; labels per token from ``logits``, captions also
    from ``caption_logits``. Captions, answers (``vqa_labels``, ``entailment_labels``, … as tokens) and name lists
    (``translation_labels``) are also written by ``generate``. The model is in eval mode meanwhile, and put back after.

    Args:
        model: The model to measure.
        dataset: Map-style; samples may carry ``task`` and ``kind``.
        collator: Samples to a batch; texts are only written if it has a ``tokenizer``.
        tasks: Only these. None = every task that the data has labels and the model outputs for.
        batch_size: Samples per forward pass.
        device: Where to run; None = where the model is.
        max_samples: Draw that many samples of the dataset, the same for every model, before ``tasks`` selects among
            them. None = all.
        retrieval: Also report recall over the captions as "retrieval" (see ``evaluate_retrieval``).
        objects_of: (caption, language) to the things it names, for the score ``objects``; None = the emoji scenes'.
        inputs: Batch keys the model takes; None = those its ``forward`` names.

    Returns:
        Scores per task, see ``evaluate.metrics``; ready for JSON.

    Raises:
        InputError: The model lacks the output of a named task, or nothing in the data can be measured.
        RecipeError: No sample belongs to a named task.
    """
    device, inputs = device or device_of(model), None if inputs is None else list(inputs)
    objects_of = objects_of or _objects_of_scenes()
    pick, decode = model_inputs(model, inputs), decoder_of(collator)
    metrics: dict[str, Metric] = {}
    found: list[str] = []
    indices = choose_indices(dataset, max_samples)
    with measuring(model):
        for samples, batch in iterate(
            dataset, collator, indices, batch_size=batch_size, device=device, tasks=_by_sample(tasks)
        ):
            output = outputs_of(model, pick(batch))
            for task, key in label_keys(batch).items():
                rows = rows_of(batch[key])
                if not bool(rows.any()):
                    continue
                found += [task] if task not in found else []
                if tasks is None and not _can_answer(model, output, task, key, batch[key]):
                    continue
                if tasks is not None and task not in tasks:
                    continue
                if task not in metrics:
                    kind = kind_of(key, batch[key], collator)
                    if kind == "classification":  # a model whose classes are no plain list says so
                        kind = getattr(model, "classification_metric", kind)
                    metrics[task] = METRICS.get(kind)()
                asked = rows.nonzero()[:, 0]
                view = View(task, batch[key], asked, samples, batch, output, model, decode, objects_of, collator)
                metrics[task].add(view)
    check_tasks(tasks, found)
    if not metrics:
        raise InputError(
            "nothing to measure",
            where="evaluate",
            expected="labels that fit an output of the model",
            got=f"labels of {', '.join(found) or 'no task'}",
        )
    scores = {task: metric.result() for task, metric in metrics.items()}
    if retrieval:
        scores["retrieval"] = evaluate_retrieval(
            model, dataset, collator, batch_size=batch_size, device=device, max_samples=max_samples, inputs=inputs
        )
    return scores


def evaluate_retrieval(
    model: nn.Module,
    dataset: Any,
    collator: Callable[[list[Any]], Mapping[str, Any]],
    *,
    batch_size: int = 128,
    device: torch.device | str | None = None,
    max_samples: int | None = None,
    inputs: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Measure image-text retrieval among the captions of a dataset; other samples of a mixed dataset are left out.

    Recall depends on how many candidates there are: compare only numbers with equal ``samples``.

    Returns:
        ``recall@1`` and ``recall@5`` (mean of both directions), both per direction, and ``samples``.

    Raises:
        InputError: The model returns no ``image_embeds`` and ``text_embeds``, or the data has no caption.
    """
    pick, device = model_inputs(model, inputs), device or device_of(model)
    # Models that compute their text embedding only on request say so in their signature.
    asks = {"return_contrastive": True} if "return_contrastive" in inspect.signature(model.forward).parameters else {}
    images, texts, keys = [], [], []
    with measuring(model):
        for samples, batch in iterate(
            dataset, collator, choose_indices(dataset, max_samples), batch_size=batch_size, device=device
        ):
            labels = batch.get("caption_labels")
            rows = torch.tensor([labels is None or field_of(s, "task") == "retrieval" for s in samples], device=device)
            rows = rows if labels is None else rows | rows_of(labels)
            if not bool(rows.any()):
                continue
            # Rows of other tasks would only cost time.
            few = {k: v[rows] if isinstance(v, torch.Tensor) and len(v) == len(rows) else v for k, v in batch.items()}
            output = model(**pick(few), **asks)
            images.append(lookup(output, "image_embeds").float())
            texts.append(lookup(output, "text_embeds").float())
            mask = few.get("attention_mask", torch.ones_like(few["input_ids"]))
            keys += [tuple(ids[m.bool()].tolist()) for ids, m in zip(few["input_ids"], mask)]
    if not keys:
        raise InputError("the data has no caption to retrieve", where="retrieval")
    return retrieval_scores(torch.cat(images), torch.cat(texts), keys)


def kind_of(key: str, labels: torch.Tensor, collator: Any = None) -> str:
    """Return the metric that fits the labels at a batch key; a collator may say so itself, by task, in ``metrics``."""
    task = key.removesuffix("_labels")
    said = getattr(collator, "metrics", {}).get("main" if key == "labels" else task)
    if said is not None:
        return said
    if key == "caption_labels":
        return "caption"
    if labels.is_floating_point() or labels.ndim not in (1, 2):
        raise InputError(
            "no metric for such labels",
            where=key,
            expected="integer classes (B,) or tokens (B, T)",
            got=f"{labels.dtype} {tuple(labels.shape)}",
        )
    return "classification" if labels.ndim == 1 else _TEXTS.get(task, "language_model")


def main_score(entry: Mapping[str, Any]) -> float | None:
    """Return the one number that stands for a task in a table.

    ``objects`` of captions, else ``accuracy``, ``recall@1`` or ``token_accuracy``, whichever the entry has first.
    """
    names = ("objects", "accuracy", "recall@1", "token_accuracy")
    return next((entry[name] for name in names if entry.get(name) is not None), None)


def _by_sample(tasks: Sequence[str] | None) -> list[str] | None:
    # A sample that names its task can be dropped before it costs a forward pass; "main" is our own name.
    return None if tasks is None or "main" in tasks else list(tasks)


def _can_answer(model: nn.Module, output: Any, task: str, key: str, labels: torch.Tensor) -> bool:
    if kind_of(key, labels) in WRITTEN - {"caption"} and can_write(model):
        return True
    try:
        lookup(output, output_name(output, task, labels))
    except InputError:
        return False
    return True


def _objects_of_scenes() -> ObjectsOf:
    from potstill.data.scenes.wording import LANGUAGES, objects_in_caption

    # Captions of a user's own data may be in any language; the scenes know none of their things then.
    return lambda text, language: objects_in_caption(text, language) if language in LANGUAGES else ()
