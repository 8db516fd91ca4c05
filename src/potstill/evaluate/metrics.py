"""What is counted per kind of task: classification, captions, written answers and name lists, language modelling."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from potstill.errors import InputError, ShapeError
from potstill.evaluate.batches import IGNORED, field_of, label_text
from potstill.evaluate.calibration import Bins
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
        collator: What made the batch; that of texts also makes prompts to write from.
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
    collator: Any = None


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
    """Accuracy over all rows and per ``kind`` of sample.

    ``macro_accuracy`` is the mean over the classes that occur; ``top5_accuracy``, for more than five classes, the share
    of rows whose class is among the five highest scores; ``ece`` the expected calibration error; ``nll`` nats per row.
    """

    hits: int = 0
    samples: int = 0
    kinds: dict[str, list[int]] = field(default_factory=dict)
    in_top5: int | None = None
    nll: float = 0.0
    classes: dict[int, list[int]] = field(default_factory=dict)
    bins: Bins = field(default_factory=Bins)

    def add(self, view: View) -> None:
        """Count one batch."""
        logits = lookup(view.output, classification_output(view.output, view.task))[view.rows]
        if logits.ndim != 2:
            raise ShapeError(
                "not one score per class", where=f"task {view.task}", expected="(B, C)", got=tuple(logits.shape)
            )
        labels, chances = view.labels[view.rows], logits.float().softmax(-1)
        top = chances.max(-1)
        self.bins.add(top.values, top.indices == labels)
        is_right = (top.indices == labels).tolist()
        for label, right in zip(labels.tolist(), is_right):
            count = self.classes.setdefault(label, [0, 0])
            count[0] += right
            count[1] += 1
        if logits.shape[-1] > 5:
            self.in_top5 = (self.in_top5 or 0) + int((logits.topk(5).indices == labels[:, None]).sum())
        is_class = labels < logits.shape[-1]
        if bool(is_class.all()):
            self.nll += float(F.cross_entropy(logits.float(), labels, reduction="sum"))
        else:
            self.nll = math.inf  # a class the model does not have
        for row, right in zip(view.rows.tolist(), is_right):
            kind = field_of(view.samples[row], "kind")
            if kind is not None:
                count = self.kinds.setdefault(str(kind), [0, 0])
                count[0] += right
                count[1] += 1
        self.hits += sum(is_right)
        self.samples += len(is_right)

    def result(self) -> dict[str, Any]:
        """Return accuracy and its standard error, the other scores, the number of samples, the accuracy per kind."""
        share = self.hits / self.samples
        scores = {"accuracy": share, "stderr": proportion_error(share, self.samples), "samples": self.samples}
        scores["macro_accuracy"] = sum(hits / n for hits, n in self.classes.values()) / len(self.classes)
        scores["top5_accuracy"] = None if self.in_top5 is None else self.in_top5 / self.samples
        scores["ece"] = self.bins.error()
        scores["nll"] = None if math.isinf(self.nll) else self.nll / self.samples
        scores = {name: value for name, value in scores.items() if value is not None}
        kinds = {kind: hits / n for kind, (hits, n) in sorted(self.kinds.items())}
        return scores | ({"kinds": kinds} if kinds else {})


def output_name(output: Any, task: str, labels: torch.Tensor) -> str:
    """Return the dotted name of the model output that answers a task.

    Classes have a head of their own or are the model's only one; tokens are scored in ``logits``, and captions in
    ``caption_logits`` by models that have such.
    """
    if labels.ndim == 1:
        return classification_output(output, task)
    return "caption_logits" if task == "caption" and _has(output, "caption_logits") else "logits"


def aligned_output(model: nn.Module, output: Any, task: str, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scores of the tokens of a task ``[B, T', V]`` and the labels they predict ``[B, T']``."""
    name = output_name(output, task, labels)
    logits = lookup(output, name)
    # Caption logits are trained on labels that the collator has shifted.
    return (logits, labels) if name == "caption_logits" else aligned(model, logits, labels)


@dataclass
class _Written(Metric):
    """What metrics of written texts share: the scores of the true tokens, and the greedy text of every row.

    ``token_accuracy`` and ``nll`` (nats per token) are teacher-forced, and absent if the model returns no such scores.
    Without a tokenizer, or for a model that cannot generate, they are all there is.
    """

    samples: int = 0
    exact: int = 0
    has_written: bool = False
    token_hits: int = 0
    tokens: int = 0
    nll: float = 0.0

    def add(self, view: View) -> None:
        """Count one batch: a greedy text per row, the picture encoded once."""
        labels = view.labels[view.rows]
        self.samples += len(labels)
        if _has(view.output, output_name(view.output, view.task, view.labels)):
            logits, targets = aligned_output(view.model, view.output, view.task, view.labels)
            logits, targets = logits[view.rows], targets[view.rows]
            counts = targets != IGNORED
            scores, target = logits[counts].float(), targets[counts]
            self.token_hits += int((scores.argmax(-1) == target).sum())
            self.nll += float(F.cross_entropy(scores, target, reduction="sum"))
            self.tokens += len(target)
        if view.decode is None or not can_write(view.model):
            return
        self.has_written = True
        truths = [label_text(row, view.decode) for row in labels]
        texts = write_texts(view.model, view.batch, view.rows, labels, view.decode)
        for row, text, truth in zip(view.rows.tolist(), texts, truths):
            self.exact += text == truth
            self.compare(view.samples[row], text, truth, view)

    def compare(self, sample: Any, text: str, truth: str, view: View) -> None:
        """Count what else there is to a written text."""
        raise NotImplementedError

    def token_scores(self) -> dict[str, float]:
        """Return the teacher-forced scores."""
        return {"token_accuracy": self.token_hits / self.tokens, "nll": self.nll / self.tokens} if self.tokens else {}


@METRICS.register("caption")
@dataclass
class Caption(_Written):
    """Written captions against the true ones, and the scores of the true tokens.

    ``objects``: share of the things in the picture that the written caption names, each with the right place.
    ``invented``: share of the named things that are not there. ``exact``: share of captions equal to the true one.
    ``token_accuracy`` and ``nll`` (nats per token) are teacher-forced. Without a tokenizer, or for a model that
    cannot generate, only the last two are given; ``objects`` only where captions name things the data knows.
    """

    named: list[tuple[int, int, int]] = field(default_factory=list)  # found, present, said

    def compare(self, sample: Any, text: str, truth: str, view: View) -> None:
        """Count the things that the caption names."""
        language = field_of(sample, "language") or "en"
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
        return scores | self.token_scores()


@METRICS.register("answer")
@dataclass
class Answer(_Written):
    """Written answers: ``accuracy`` is the share that equals the true one word for word, also per ``kind`` of sample.

    ``token_accuracy`` and ``nll`` (nats per token) are teacher-forced. Without a tokenizer, or for a model that
    cannot generate, only these are given.
    """

    kinds: dict[str, list[int]] = field(default_factory=dict)

    def compare(self, sample: Any, text: str, truth: str, view: View) -> None:
        """Count the answer for its kind."""
        kind = field_of(sample, "kind")
        if kind is not None:
            count = self.kinds.setdefault(str(kind), [0, 0])
            count[0] += text == truth
            count[1] += 1

    def result(self) -> dict[str, Any]:
        """Return accuracy, its standard error, the number of samples, the accuracy per kind, and token scores."""
        scores: dict[str, Any] = {"samples": self.samples}
        if self.has_written:
            share = self.exact / self.samples
            scores = {"accuracy": share, "stderr": proportion_error(share, self.samples), **scores}
        kinds = {kind: hits / n for kind, (hits, n) in sorted(self.kinds.items())}
        return scores | ({"kinds": kinds} if kinds else {}) | self.token_scores()


@METRICS.register("name_list")
@dataclass
class NameList(Answer):
    """Written lists such as a translation: as ``answer``, and ``names``, the share of the true names that were written.

    Names are what stands between commas; each counts as often as it occurs, in any order.
    """

    found: int = 0
    present: int = 0

    def compare(self, sample: Any, text: str, truth: str, view: View) -> None:
        """Count the names."""
        super().compare(sample, text, truth, view)
        said, true = (Counter(name.strip() for name in t.split(",")) for t in (text, truth))
        self.found += (said & true).total()
        self.present += true.total()

    def result(self) -> dict[str, Any]:
        """Return the scores of ``answer``, and ``names``."""
        return super().result() | ({"names": self.found / self.present} if self.present else {})


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


def can_write(model: nn.Module) -> bool:
    """True if the model has a ``generate``."""
    return callable(getattr(model, "generate", None))


def write_texts(
    model: nn.Module,
    batch: Mapping[str, Any],
    rows: torch.Tensor,
    labels: torch.Tensor,
    decode: Callable[[Sequence[int]], str],
) -> list[str]:
    """Return the greedy text of each of the rows; at most 8 tokens longer than the longest true one.

    A model with an encoder for the prompt is given the prompt; ``input_ids`` of any other are what it is to write.
    """
    keys = ["pixel_values", "image_mask"]
    if getattr(model.config, "is_encoder_decoder", False) or "decoder_input_ids" in batch:
        keys += ["input_ids", "attention_mask"]
    given = {k: batch[k][rows] for k in keys if k in batch}
    longest = int((labels != IGNORED).sum(1).max()) + 8
    room = getattr(model.config, "max_text_length", longest + 1) - 1
    ids = model.generate(**given, max_new_tokens=min(longest, room), do_sample=False, num_beams=1)
    return [decode(row) for row in ids.tolist()]


def _has(output: Any, name: str) -> bool:
    try:
        lookup(output, name)
    except InputError:
        return False
    return True
