"""Data and models small enough to count by hand, and the real scenes with a tiny CoCa."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

LABELS = {"vqa": ["red", "green", "blue"], "entailment": ["entailment", "neutral", "contradiction"]}


class TableModel(nn.Module):
    """Answers every sample with the logits that stand for it in a table: what it scores is known beforehand."""

    def __init__(self, tables, classes=LABELS):
        super().__init__()
        self.tables = tables
        self.config = SimpleNamespace(task_labels=classes)
        self.unused = nn.Linear(1, 1)
        self.was_training = []

    def forward(self, sample_id):
        self.was_training.append(self.training)
        return {"task_logits": {task: table[sample_id] for task, table in self.tables.items()}}


def collate(samples):
    batch = {"sample_id": torch.tensor([s["index"] for s in samples])}
    for task in LABELS:
        batch[f"{task}_labels"] = torch.tensor([s["label"] if s["task"] == task else -100 for s in samples])
    return batch


@pytest.fixture
def toy():
    """Six questions (kinds "what" and "where") and two claims; labels in order 0 1 2 0 1 2, then 0 1."""
    data = [
        {"task": "vqa", "kind": "what" if i % 2 else "where", "label": i % 3, "index": i, "language": "en"}
        for i in range(6)
    ]
    data += [{"task": "entailment", "kind": "colour", "label": i, "index": 6 + i, "language": "en"} for i in range(2)]
    return SimpleNamespace(data=data, collate=collate, labels=LABELS, model=TableModel)


def table(winners, size=3, height=2.0):
    """Return logits with ``height`` at the winner of each row and 0 elsewhere; rows of zeros fill up to 8."""
    logits = torch.zeros(max(8, len(winners)), size)
    logits[torch.arange(len(winners)), torch.tensor(winners)] = height
    return logits


@pytest.fixture
def make_table():
    return table


@pytest.fixture(scope="session")
def scenes():
    """The embedded scenes with their collator, and a function that makes tiny CoCa models for them."""
    from potstill.data.scenes import SceneCollator, SceneDataset, build_tokenizer
    from potstill.models.coca import CocaConfig, CocaModel

    data, tokenizer = SceneDataset("test", size=60), build_tokenizer()
    sizes = {"image_width": 16, "image_heads": 2, "image_layers": 2, "text_width": 16, "text_heads": 2}
    sizes |= {"text_layers": 1, "multimodal_layers": 1, "caption_queries": 4, "embed_dim": 8, "max_text_length": 32}

    def model(seed=0, **changes):
        torch.manual_seed(seed)
        config = {**sizes, "vocab_size": len(tokenizer), "task_labels": data.task_labels, **changes}
        return CocaModel(CocaConfig.small_scenes(**config)).eval()

    return SimpleNamespace(data=data, collator=SceneCollator(tokenizer, data.task_labels), model=model)
