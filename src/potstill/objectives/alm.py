"""Approximate likelihood matching as objectives: a teacher and a student with different tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from potstill.errors import RecipeError
from potstill.losses import alm_latents_loss, alm_loss, boundary_mask
from potstill.objectives.base import (
    IGNORE_INDEX,
    OBJECTIVES,
    Objective,
    Seen,
    check_number,
    check_output,
    outputs_and_taps,
    read_output,
)

KEYS = ("student_chunks", "teacher_chunks", "teacher_input_ids", "teacher_labels")
DIFFS = ("binary_ce", "abs", "reverse_binary_kl", "binary_kl_limit")


class _OfChunks(Objective):
    """What both share: the outputs they read, and how many chunks of a batch count."""

    crosses_tokenizers = True

    def __init__(self, name: str, on: str, teacher_on: str | None, labels: str, weight: float):
        super().__init__(name, weight=weight)
        self.on, self.teacher_on, self.labels = on, teacher_on or on, labels
        check_output(on, f"{name}.on")
        check_output(self.teacher_on, f"{name}.teacher_on" if teacher_on else f"{name}.on")
        self.student_outputs, self.student_taps = outputs_and_taps(on)
        self.teacher_outputs, self.teacher_taps = outputs_and_taps(self.teacher_on)

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Count the chunks that both sides are to learn, before any is merged."""
        self._check(batch)
        found = []
        for side, mask in zip(("student", "teacher"), self._masks(batch)):
            chunks = batch[f"{side}_chunks"]
            inside = mask & (chunks >= 0)
            inside[:, 0] = False  # nothing says how likely the first token is
            C = max(batch["student_chunks"].shape[1], batch["teacher_chunks"].shape[1])
            has = torch.zeros(len(chunks), C + 1, dtype=torch.bool, device=chunks.device)
            found.append(has.scatter(1, chunks.masked_fill(~inside, C).long(), True)[:, :C])
        return (found[0] & found[1]).sum(dtype=torch.float64)

    def _masks(self, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        return batch[self.labels] != IGNORE_INDEX, batch["teacher_labels"] != IGNORE_INDEX

    def _check(self, batch: Mapping[str, Any]) -> None:
        for key in (*KEYS, self.labels):
            if key not in batch:
                raise RecipeError(
                    f'the batch has no "{key}"',
                    where=self.name,
                    expected="a batch of two tokenizers",
                    hint="Use a data source of texts with a teacher_tokenizer, or TwoTokenizerCollator.",
                )


@OBJECTIVES.register("alm")
class ALMObjective(_OfChunks):
    """Pull the student's likelihood of every chunk of text to the teacher's: ``potstill.losses.alm_loss``.

    For models with different tokenizers. The batch comes from ``TwoTokenizerCollator``, and beside it usually stands
    ``cross_entropy`` on the student's labels. Where tokenizers are equal, ``kd_kl`` says more.

    The mean is over chunks as the collator cut them. With ``merge_threshold`` it is over groups, whose number only the
    teacher knows: then it is the mean over the groups of each micro-batch, weighed by its chunks.

    Args:
        name: Its name in logs.
        on: Token logits, ``[B, L, V]``, position t for token t + 1.
        teacher_on: The teacher's output, if it has another name.
        labels: Batch key of the student's labels; tokens with -100 do not count. The teacher's are ``teacher_labels``.
        temperature: τ; log-probabilities of chunks are divided by it.
        append_boundary: Correct each chunk by the chance that it ends there.
        merge_threshold: Join chunks up to the next at whose end the teacher expects a boundary with a chance above it;
            null = the finest chunks.
        diff: binary_ce, reverse_binary_kl, abs or binary_kl_limit.
        eps: Taken off the log-probabilities.
        weight: Factor in the loss.

    Source:
        Minixhofer et al., arXiv 2503.20083. Defaults as the authors' code recommends, not as in the paper, whose chunks
        are neither corrected nor merged.
    """

    loss_name = "alm"

    def __init__(
        self,
        name: str = "alm",
        on: str = "logits",
        *,
        teacher_on: str | None = None,
        labels: str = "labels",
        temperature: float = 100.0,
        append_boundary: bool = True,
        merge_threshold: float | None = 0.1,
        diff: str = "binary_ce",
        eps: float = 1e-6,
        weight: float = 1.0,
    ):
        super().__init__(name, on, teacher_on, labels, weight)
        check_number(temperature, f"{name}.temperature", 0, is_open=True)
        check_number(eps, f"{name}.eps", 0)
        if merge_threshold is not None:
            check_number(merge_threshold, f"{name}.merge_threshold", 0, 1)
        if diff not in DIFFS:
            raise RecipeError("unknown difference", where=f"{name}.diff", expected=", ".join(DIFFS), got=diff)
        self.options = {"temperature": temperature, "append_boundary": append_boundary, "eps": eps, "diff": diff}
        self.options["merge_threshold"] = merge_threshold
        self.batch_coupled = merge_threshold is not None
        self.boundaries: tuple[torch.Tensor, torch.Tensor] | None = None

    def read_tokenizers(self, student: Any, teacher: Any) -> None:
        """Learn from both tokenizers which tokens begin where a word can end."""
        self.boundaries = boundary_mask(student), boundary_mask(teacher)

    def total(self, seen: Seen, part: nn.Module | None) -> torch.Tensor:
        """Sum the loss over the chunks that count."""
        student, teacher = read_output(seen.student, self.on), read_output(seen.teacher, self.teacher_on)
        batch = seen.batch
        self._check(batch)
        if not isinstance(teacher, torch.Tensor):  # the most likely classes alone, kept on disk
            raise RecipeError(
                "a cache of logits does not say how likely the tokens of the text were",
                where=self.name,
                expected="a teacher in memory",
            )
        if self.boundaries is None and (self.options["append_boundary"] or self.batch_coupled):
            raise RecipeError(
                "the tokenizers are not known, so neither are word boundaries",
                where=f"{self.name}.append_boundary",
                hint="Call read_tokenizers, or set append_boundary: false and merge_threshold: null.",
            )
        boundaries = (None, None) if self.boundaries is None else (b.to(student.device) for b in self.boundaries)
        loss = alm_loss(
            student,
            teacher,
            batch["input_ids"],
            batch["teacher_input_ids"],
            batch["student_chunks"],
            batch["teacher_chunks"],
            *self._masks(batch),
            *boundaries,
            **self.options,
            reduction="mean" if self.batch_coupled else "sum",
        )
        return loss * self.count(batch) if self.batch_coupled else loss


@OBJECTIVES.register("alm_latents")
class ALMLatentsObjective(_OfChunks):
    """Hold the student's last hidden states to the teacher's at the end of every chunk: ``alm_latents_loss``.

    Only beside ``alm``, for a student that began as a copy of its teacher and has another tokenizer. Differences are
    scaled by the teacher's mean squares in the micro-batch of one process.

    Args:
        name: Its name in logs.
        on: Last hidden states ``[B, L, D]``: an output, or a tap such as ``model.norm@output``.
        teacher_on: The teacher's, if it has another name.
        labels: Batch key of the student's labels; tokens with -100 do not count.
        weight: Factor in the loss.

    Source:
        Minixhofer et al., arXiv 2503.20083, as in the authors' code.
    """

    role = "hidden"
    loss_name = "alm_latents"
    batch_coupled = True

    def __init__(
        self, name: str, on: str, *, teacher_on: str | None = None, labels: str = "labels", weight: float = 1.0
    ):
        super().__init__(name, on, teacher_on, labels, weight)

    def total(self, seen: Seen, part: nn.Module | None) -> torch.Tensor:
        """Weigh the mean of the micro-batch by its chunks."""
        student, teacher = read_output(seen.student, self.on), read_output(seen.teacher, self.teacher_on)
        batch = seen.batch
        loss = alm_latents_loss(student, teacher, batch["student_chunks"], batch["teacher_chunks"], *self._masks(batch))
        return loss * self.count(batch)
