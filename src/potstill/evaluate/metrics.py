"""What is counted per kind of task: classification, captions, language modelling, retrieval."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from potstill.errors import ShapeError
from potstill.evaluate.batches import IGNORED, field_of, label_text
from potstill.evaluate.statistics import proportion_error, ratio_error
from potstill.registry import Registry
from potstill.taps import lookup

ObjectsOf = Callable[[str, str], Iterable[Hashable]]


@dataclass
class View:
    """One batch as a metric sees it.

    Attributes:
        task: Name of the task.
        labels: Its labels, ``[B]`` or ``[B, T]``, -100 where there is none.
        rows: Numbers of the rows that belong to the task.
        samples: What the dataset returned, one per row.
        batch: What the collator made of them.
        output: What the model returned for the batch.
        model: The model.
        decode: Token ids to text, or None without a tokenizer.
        objects_of: (caption, language) to the things it names.
    """

    task: str
    labels: torch.Tensor
    rows: torch.Tensor
    samples: Sequence[Any]
    batch: Mapping[str, Any]
    output: Any
    model: nn.Module
    decode: Callable[[Sequence[int]], str] | None
    objects_of: ObjectsOf


class Metric:
    """Counts over batches: ``add`` each, then ``result``."""

    def add(self, view: View) -> None:
        """Count one batch."""
        raise NotImplementedError

    def result(self) -> dict[str, Any]:
        """Return the scores, ready for JSON."""
        raise NotImplementedError


METRICS: Registry[type[Metric]] = Registry("metric")


def classification_output(view_output: Any, task: str) -> str:
    """Return the dotted name of the logits of a classification task: its own head, or the model's only one."""
    has_heads = (
        view_output.get("task_logits")
        if isinstance(view_output, Mapping)
        else getattr(view_output, "task_logits", None)
    )
    return f"task_logits.{task}" if has_heads is not None else "logits"


def is_causal(model: nn.Module) -> bool:
    """True if position t of a model predicts token t + 1 of the labels: decoder-only models that can generate."""
    can_generate = getattr(model, "can_generate", None)
    is_encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return not is_encoder_decoder and can_generate is not None and bool(can_generate())


def aligned(model: nn.Module, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits ``[B, T', V]`` and the labels they predict ``[B, T']``: shifted by one for causal models."""
    if logits.shape[:2] != labels.shape:
        raise ShapeError(
            "logits and labels do not fit", where="labels", expected=tuple(logits.shape[:2]), got=tuple(labels.shape)
        )
    return (logits[:, :-1], labels[:, 1:]) if is_causal(model) else (logits, labels)


@METRICS.register("classification")
@dataclass
class Classification(Metric):
    """Accuracy over all rows and per ``kind`` of sample."""

    hits: int = 0
    samples: int = 0
    kinds: dict[str, list[int]] = field(default_factory=dict)

    def add(self, view: View) -> None:
        """Count one batch."""
        logits = lookup(view.output, classification_output(view.output, view.task))[view.rows]
        if logits.ndim != 2:
            raise ShapeError(
                "not one score per class", where=f"task {view.task}", expected="(B, C)", got=tuple(logits.shape)
            )
        is_right = (logits.argmax(-1) == view.labels[view.rows]).tolist()
        for row, right in zip(view.rows.tolist(), is_right):
            kind = field_of(view.samples[row], "kind")
            if kind is not None:
                count = self.kinds.setdefault(str(kind), [0, 0])
                count[0] += right
                count[1] += 1
        self.hits += sum(is_right)
        self.samples += len(is_right)

    def result(self) -> dict[str, Any]:
        """Return accuracy, its standard error, the number of samples and the accuracy per kind."""
        share = self.hits / self.samples
        scores = {"accuracy": share, "stderr": proportion_error(share, self.samples), "samples": self.samples}
        kinds = {kind: hits / n for kind, (hits, n) in sorted(self.kinds.items())}
        return scores | ({"kinds": kinds} if kinds else {})


@METRICS.register("caption")
@dataclass
class Caption(Metric):
    """Written captions against the true ones, and the scores of the true tokens.

    ``objects``: share of the things in the picture that the written caption names, each with the right place.
    ``invented``: share of the named things that are not there. ``exact``: share of captions equal to the true one.
    ``token_accuracy`` and ``nll`` (nats per token) are teacher-forced. Without a tokenizer, or for a model that
    cannot generate, only the last two are given; ``objects`` only where captions name things the data knows.
    """

    samples: int = 0
    exact: int = 0
    named: list[tuple[int, int, int]] = field(default_factory=list)  # found, present, said
    token_hits: int = 0
    tokens: int = 0
    nll: float = 0.0
    has_written: bool = False

    def add(self, view: View) -> None:
        """Count one batch: a greedy caption per row, the picture encoded once."""
        labels = view.labels[view.rows]
        counts = labels != IGNORED
        scores, target = lookup(view.output, "caption_logits")[view.rows][counts].float(), labels[counts]
        self.token_hits += int((scores.argmax(-1) == target).sum())
        self.nll += float(F.cross_entropy(scores, target, reduction="sum"))
        self.tokens += len(target)
        self.samples += len(labels)
        if view.decode is None or not callable(getattr(view.model, "generate", None)):
            return
        self.has_written = True
        truths = [label_text(row, view.decode) for row in labels]
        texts = write_captions(view.model, view.batch, view.rows, labels, view.decode)
        for row, text, truth in zip(view.rows.tolist(), texts, truths):
            language = field_of(view.samples[row], "language") or "en"
            self.exact += text == truth
            said, present = (Counter(view.objects_of(t, language)) for t in (text, truth))
            self.named.append(((said & present).total(), present.total(), said.total()))

    def result(self) -> dict[str, Any]:
        """Return the shares with the standard error of ``objects`` over pictures, and token scores."""
        scores: dict[str, Any] = {"samples": self.samples}
        found, present, said = (sum(column) for column in zip(*self.named)) if self.named else (0, 0, 0)
        if present:
            hits, totals = [row[0] for row in self.named], [row[1] for row in self.named]
            error = ratio_error(hits, totals)
            scores |= {"objects": found / present, "stderr": None if math.isnan(error) else error}
            scores["invented"] = (said - found) / said if said else 0.0
        if self.has_written:
            scores["exact"] = self.exact / self.samples
        return scores | {"token_accuracy": self.token_hits / self.tokens, "nll": self.nll / self.tokens}


@METRICS.register("language_model")
@dataclass
class LanguageModel(Metric):
    """Next-token (or masked-token) accuracy, nats per token and perplexity over labels that are not -100."""

    samples: int = 0
    hits: int = 0
    tokens: int = 0
    nll: float = 0.0

    def add(self, view: View) -> None:
        """Count one batch."""
        logits, labels = aligned(view.model, lookup(view.output, "logits"), view.labels)
        counts = labels != IGNORED
        scores, target = logits[counts].float(), labels[counts]
        self.hits += int((scores.argmax(-1) == target).sum())
        self.nll += float(F.cross_entropy(scores, target, reduction="sum"))
        self.tokens += len(target)
        self.samples += len(view.rows)

    def result(self) -> dict[str, Any]:
        """Return the scores; ``perplexity`` is exp(``nll``)."""
        if not self.tokens:
            return {"accuracy": None, "nll": None, "perplexity": None, "tokens": 0, "samples": self.samples}
        nll, share = self.nll / self.tokens, self.hits / self.tokens
        return {
            "accuracy": share,
            "stderr": proportion_error(share, self.tokens),
            "nll": nll,
            "perplexity": math.exp(min(nll, 700.0)),
            "tokens": self.tokens,
            "samples": self.samples,
        }


def write_captions(
    model: nn.Module,
    batch: Mapping[str, Any],
    rows: torch.Tensor,
    labels: torch.Tensor,
    decode: Callable[[Sequence[int]], str],
) -> list[str]:
    """Return the greedy caption of each of the rows; at most 8 tokens longer than the longest true one."""
    images = {k: batch[k][rows] for k in ("pixel_values", "image_mask") if k in batch}
    longest = int((labels != IGNORED).sum(1).max()) + 8
    room = getattr(model.config, "max_text_length", longest + 1) - 1
    ids = model.generate(**images, max_new_tokens=min(longest, room), do_sample=False, num_beams=1)
    return [decode(row) for row in ids.tolist()]
