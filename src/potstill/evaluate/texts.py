"""What is counted where a language model continues prompts: likelihood of the true texts, and texts it writes."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from potstill.data.generation import write_tokens
from potstill.data.sources import fetch
from potstill.evaluate.batches import (
    IGNORED,
    choose_indices,
    decoder_of,
    device_of,
    field_of,
    label_text,
    measuring,
)
from potstill.evaluate.metrics import METRICS, Metric, View, aligned, can_write
from potstill.evaluate.statistics import proportion_error
from potstill.taps import lookup

MARGIN = 8  # tokens a written text may be longer than the longest true one
_WORD = re.compile(r"\w+")


def rouge_l(written: str, truth: str) -> float:
    """Return ROUGE-L, the F-measure of the longest common subsequence of words, from 0 to 1.

    Words are runs of letters and digits in lower case, not stemmed; order counts, gaps do not. It rewards the right
    words and not the right statement: do not read it as quality across kinds of text.

    Source:
        C.-Y. Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, section 3.1, with beta = 1.
    """
    said, true = (_WORD.findall(text.lower()) for text in (written, truth))
    if not said or not true:
        return float(said == true)
    row = [0] * (len(true) + 1)
    for word in said:
        before = 0  # the value up and to the left
        for i, other in enumerate(true, 1):
            before, row[i] = row[i], before + 1 if word == other else max(row[i], row[i - 1])
    return 2 * row[-1] / (len(said) + len(true))


def write_on(
    model: nn.Module,
    prompts: Mapping[str, torch.Tensor],
    max_new_tokens: int,
    *,
    end: int,
    padding: int,
    decode: Callable[[Sequence[int]], str],
) -> tuple[list[str], int, float]:
    """Return the most likely continuation of each prompt word by word, how many tokens that is, and the seconds taken.

    Args:
        model: A causal language model.
        prompts: ``input_ids`` and ``attention_mask`` ``[B, P]``, padded on the left.
        max_new_tokens: Most tokens; less where the model's positions end.
        end: Token that ends a text.
        padding: Token that stands behind it.
        decode: Token ids to text.
    """
    device = device_of(model)
    ids, mask = (prompts[key].to(device) for key in ("input_ids", "attention_mask"))
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None) or math.inf
    room = int(min(max_new_tokens, positions - int(mask.sum(1).max())))
    if room < 1:
        return [""] * len(ids), 0, 0.0
    start = time.perf_counter()
    done = write_tokens(model, ids, mask, max_new_tokens=room, eos_token_id=end, pad_token_id=padding, temperature=0.0)
    rows = [tokens[kept].tolist() for tokens, kept in zip(done.tokens, done.mask)]  # waits for the device
    seconds = time.perf_counter() - start
    return [decode(row) for row in rows], sum(map(len, rows)), seconds


def text_answers(
    models: Mapping[str, nn.Module], dataset: Any, collator: Any, n: int, *, seed: int = 1
) -> list[dict[str, Any]]:
    """Draw samples of texts behind prompts and write down what every model writes; entries as of ``sample_answers``."""
    indices = choose_indices(dataset, n, seed=seed)
    samples = fetch(dataset, indices)
    decode = decoder_of(collator)
    asked, labels = collator.prompts(samples), collator(samples)["labels"]
    longest = int((labels != IGNORED).sum(1).max()) + MARGIN
    with measuring(*models.values()):
        answers = {
            name: write_on(model, asked, longest, end=collator.end, padding=collator.padding, decode=decode)[0]
            for name, model in models.items()
        }
    return [
        {
            "task": str(field_of(sample, "kind") or "main"),
            "images": [],
            "text": sample["prompt"],
            "truth": label_text(labels[i], decode),
            "answers": {name: written[i] for name, written in answers.items()},
        }
        for i, sample in enumerate(samples)
    ]


@dataclass
class _Counts:
    hits: int = 0
    tokens: int = 0
    bytes: int = 0
    nll: float = 0.0

    def scores(self) -> dict[str, Any]:
        nll = self.nll / self.tokens
        found = {"nll": nll, "perplexity": math.exp(min(nll, 700.0)), "tokens": self.tokens}
        if self.bytes:
            found["byte_perplexity"] = math.exp(min(self.nll / self.bytes, 700.0))
        return found


@METRICS.register("text")
@dataclass
class Text(Metric):
    """Texts behind prompts.

    With the true text given: ``accuracy`` (share of tokens that are the most likely ones), ``nll`` (nats per token),
    ``perplexity`` (exp of it), ``byte_perplexity`` (the same per byte of the text: comparable between tokenizers);
    ``kinds`` has the accuracy, ``domains`` the rest by the samples' ``kind``. Of the first ``written`` samples of the
    collator the model also writes the text, word for word the most likely one, at most 8 tokens longer than the longest
    true text of the batch: ``rouge_l`` (mean), ``exact`` (share equal to the true text), ``tokens_per_second``
    (prompts read included; machines and batch sizes differ, so compare within one run only).
    """

    samples: int = 0
    counts: dict[str, _Counts] = field(default_factory=dict)
    written: int = 0
    exact: int = 0
    rouge: float = 0.0
    new_tokens: int = 0
    seconds: float = 0.0

    def add(self, view: View) -> None:
        """Count one batch."""
        logits, labels = aligned(view.model, lookup(view.output, "logits"), view.labels)
        for row in view.rows.tolist():
            counts = labels[row] != IGNORED
            target = labels[row][counts]
            scores = logits[row][counts].float()
            count = self.counts.setdefault(str(field_of(view.samples[row], "kind") or ""), _Counts())
            count.hits += int((scores.argmax(-1) == target).sum())
            count.nll += float(F.cross_entropy(scores, target, reduction="sum"))
            count.tokens += len(target)
            if view.decode is not None:
                count.bytes += len(label_text(target, view.decode).encode())
        self.samples += len(view.rows)
        self._write(view)

    def _write(self, view: View) -> None:
        collator = view.collator
        wanted = view.rows.tolist()[: max(0, getattr(collator, "written", 0) - self.written)]
        if not wanted or view.decode is None or not can_write(view.model):
            return
        longest = int((view.labels[wanted] != IGNORED).sum(1).max()) + MARGIN
        texts, tokens, seconds = write_on(
            view.model,
            collator.prompts([view.samples[row] for row in wanted]),
            longest,
            end=collator.end,
            padding=collator.padding,
            decode=view.decode,
        )
        self.written += len(wanted)
        self.new_tokens += tokens
        self.seconds += seconds
        for row, text in zip(wanted, texts):
            truth = label_text(view.labels[row], view.decode)
            self.exact += text == truth
            self.rouge += rouge_l(text, truth)

    def result(self) -> dict[str, Any]:
        """Return the scores."""
        every = _Counts(*(sum(getattr(c, name) for c in self.counts.values()) for name in _Counts.__annotations__))
        if not every.tokens:
            return {"accuracy": None, "nll": None, "perplexity": None, "tokens": 0, "samples": self.samples}
        share = every.hits / every.tokens
        scores = {"accuracy": share, "stderr": proportion_error(share, every.tokens), "samples": self.samples}
        scores |= every.scores()
        if self.written:
            scores |= {"exact": self.exact / self.written, "rouge_l": self.rouge / self.written}
            scores["written"] = self.written
            if self.seconds > 0:
                scores["tokens_per_second"] = self.new_tokens / self.seconds
        kinds = {name: count for name, count in sorted(self.counts.items()) if name and count.tokens}
        if kinds:
            scores["kinds"] = {name: count.hits / count.tokens for name, count in kinds.items()}
            scores["domains"] = {name: count.scores() for name, count in kinds.items()}
        return scores
