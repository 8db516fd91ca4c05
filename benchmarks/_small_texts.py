"""What the small experiments on language models share: windows of bytes, models that fit a CPU, and their measures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from potstill.train import DistillationArguments

VOCABULARY, PAD, END, FIRST = 258, 256, 257, 0  # a byte is its own number
IGNORED = -100


def llama(layers: int, width: int, seed: int, window: int) -> LlamaForCausalLM:
    """Return an untrained Llama over bytes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=width,
                intermediate_size=3 * width,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=2 * window,
                tie_word_embeddings=True,
                initializer_range=0.05,
                bos_token_id=None,
                eos_token_id=END,
                pad_token_id=PAD,
            )
        )


class Windows(torch.utils.data.Dataset):
    """Windows of bytes cut out of texts, each with the number of its domain; the first bytes are the prompt."""

    def __init__(self, texts: Sequence[str], window: int, prompt: int):
        self.prompt, self.rows, self.domains = prompt, [], []
        for domain, text in enumerate(texts):
            codes = torch.tensor(list(text.encode()), dtype=torch.long)
            cut = codes[: len(codes) // window * window].view(-1, window)
            self.rows += list(cut)
            self.domains += [domain] * len(cut)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": index, "ids": self.rows[index], "domain": self.domains[index], "prompt": self.prompt}


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Return the batch of a data source of texts; windows are of one length."""
    ids = torch.stack([sample["ids"] for sample in samples])
    labels = ids.clone()
    labels[:, : samples[0]["prompt"]] = IGNORED
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "domain": torch.tensor([sample["domain"] for sample in samples]),
        "sample_id": torch.tensor([sample["index"] for sample in samples]),
    }


def batches(data: Windows, size: int, rows: Sequence[int] | None = None) -> Iterator[dict[str, torch.Tensor]]:
    """Yield samples in order."""
    numbers = list(range(len(data)) if rows is None else rows)
    for start in range(0, len(numbers), size):
        yield collate([data[i] for i in numbers[start : start + size]])


def arguments(folder: str, steps: int, batch_size: int, seed: int) -> DistillationArguments:
    """Return how every student is trained."""
    return DistillationArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 20,
        logging_steps=steps,
        save_strategy="no",
        seed=seed,
        data_seed=seed,
        use_cpu=True,
    )


@torch.no_grad()
def nll(model: LlamaForCausalLM, data: Windows, rows: Sequence[int] | None = None) -> float:
    """Return the mean cross-entropy of the bytes that count, in nats."""
    model.eval()
    total, count = 0.0, 0
    for batch in batches(data, 64, rows):
        logits, labels = model(batch["input_ids"]).logits[:, :-1], batch["labels"][:, 1:]
        total += F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum").item()
        count += int((labels != IGNORED).sum())
    return total / count


def teacher(
    path: Path, data: Windows, *, layers: int, width: int, window: int, steps: int, batch_size: int
) -> LlamaForCausalLM:
    """Return the teacher: trained on the bytes alone, or read from the file where an earlier call kept it."""
    model = llama(layers, width, 1000, window)
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    draws = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        rows = torch.randint(len(data), (batch_size,), generator=draws).tolist()
        batch = collate([data[i] for i in rows])
        labels = batch["labels"][:, 1:].flatten()
        loss = F.cross_entropy(model(batch["input_ids"]).logits[:, :-1].flatten(0, 1), labels, ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model.eval()
