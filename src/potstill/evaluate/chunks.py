"""How alike two models are that read a text in different tokens: by the chunks of text that both cover."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from potstill.evaluate.batches import IGNORED
from potstill.evaluate.metrics import is_causal
from potstill.taps import lookup

KEYS = ("student_chunks", "teacher_chunks", "teacher_input_ids", "teacher_labels")


def has_chunks(batch: Mapping[str, Any]) -> bool:
    """True if the batch is one of two tokenizers."""
    return all(key in batch for key in KEYS)


@dataclass
class ChunkComparison:
    """Sums over chunks: what can be said where no token of one model is a token of the other."""

    chunks: int = 0
    num_bytes: int = 0
    student: float = 0.0
    teacher: float = 0.0
    gap: float = 0.0
    kl: float = 0.0

    def add(
        self, student: nn.Module, teacher: nn.Module, output_s: Any, output_t: Any, batch: Mapping[str, Any]
    ) -> None:
        """Count one batch; models that predict no next token are passed over."""
        from potstill.losses import alm_loss_from_logprobs, chunk_logprobs

        if not (is_causal(student) and is_causal(teacher)):
            return
        C = max(batch["student_chunks"].shape[1], batch["teacher_chunks"].shape[1])
        found = []
        for output, prefix, side in ((output_s, "", "student"), (output_t, "teacher_", "teacher")):
            mask = batch[f"{prefix}labels"] != IGNORED
            ids, chunks = batch[f"{prefix}input_ids"], batch[f"{side}_chunks"]
            found.append(chunk_logprobs(lookup(output, "logits"), ids, chunks, mask, num_chunks=C, side=side)[:2])
        (s, has_s), (t, has_t) = found
        both = has_s & has_t
        s, t = s[both].double(), t[both].double()
        self.chunks += len(s)
        self.student, self.teacher = self.student - float(s.sum()), self.teacher - float(t.sum())
        self.gap += float((s - t).abs().sum())
        every, options = torch.ones_like(s, dtype=torch.bool), {"temperature": 1.0, "eps": 0.0, "reduction": "sum"}
        self.kl += float(
            alm_loss_from_logprobs(s, t, every, **options) - alm_loss_from_logprobs(t, t, every, **options)
        )
        if isinstance(batch.get("chunk_bytes"), torch.Tensor):
            self.num_bytes += int(batch["chunk_bytes"].sum())

    def result(self) -> dict[str, Any]:
        """Return the scores, ready for JSON."""
        scores: dict[str, Any] = {
            "chunk_gap": self.gap / self.chunks,
            "chunk_kl": max(self.kl, 0.0) / self.chunks,
            "chunks": self.chunks,
        }
        if self.num_bytes:
            bits = self.num_bytes * math.log(2)
            scores |= {"bits_per_byte": self.student / bits, "teacher_bits_per_byte": self.teacher / bits}
        return scores
