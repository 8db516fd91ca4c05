"""How much a student behaves like its teacher: agreement, divergence, calibration, alike representations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from potstill.errors import InputError, ShapeError
from potstill.evaluate.batches import (
    IGNORED,
    check_tasks,
    choose_indices,
    device_of,
    iterate,
    label_keys,
    measuring,
    rows_of,
    to_device,
)
from potstill.evaluate.calibration import Bins
from potstill.evaluate.chunks import ChunkComparison, has_chunks
from potstill.evaluate.metrics import aligned, output_name
from potstill.evaluate.predictions import outputs_of
from potstill.taps import Taps, lookup, observe
from potstill.taps.inputs import OWN, model_inputs

POSITIONS = 64


def fidelity(
    student: nn.Module,
    teacher: nn.Module,
    dataset: Any,
    collator: Callable[[list[Any]], Mapping[str, Any]],
    *,
    tasks: Sequence[str] | None = None,
    batch_size: int = 128,
    device: torch.device | str | None = None,
    max_samples: int | None = None,
    inputs: Iterable[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Compare what student and teacher predict on the same samples.

    A student can score like its teacher and still err elsewhere; agreement and divergence show it. Captions and other
    token tasks are compared teacher-forced, at every position that has a label.

    Args:
        student: The student.
        teacher: The teacher; both read the same batches. A key ``teacher_<key>`` is given to it in place of ``<key>``.
        dataset: Map-style.
        collator: Samples to a batch.
        tasks: Only these. None = every task that both models have an output for.
        batch_size: Samples per forward pass.
        device: Where to run; None = where the student is. The teacher is expected there too.
        max_samples: As in ``evaluate_tasks``. None = all.
        inputs: Batch keys that both models take; None = those the ``forward`` of each names.

    Returns:
        Per task: ``agreement`` (share of equal top-1 predictions), ``kl`` (mean of KL(teacher || student) at
        temperature 1, nats), ``ece`` and ``teacher_ece`` (expected calibration error of each against the labels, 15
        bins), ``samples`` (rows, or tokens); with several positions per row also ``kl_by_position`` (nats, of the
        first 64 predicted tokens of a row). Empty if the models have no output in common. Of models that read a text in
        different tokens (``TwoTokenizerCollator``) instead ``chunk_gap``, the mean distance in nats between their
        log-probabilities of a chunk of text, ``chunk_kl``, the KL of "this chunk, or another" in nats, ``chunks``, and
        ``bits_per_byte`` of each over these chunks.

    Raises:
        ShapeError: Both models answer a task with other classes.
        InputError: One model lacks the output of a named task.
        RecipeError: No sample belongs to a named task.
    """
    device = device or device_of(student)
    inputs = None if inputs is None else list(inputs)
    pick_s, pick_t = model_inputs(student, inputs), model_inputs(teacher, inputs, own=OWN)
    by_chunk = ChunkComparison()
    compared: dict[str, _Comparison] = {}
    found: list[str] = []
    indices = choose_indices(dataset, max_samples)
    with measuring(student, teacher):
        for _, batch in iterate(dataset, collator, indices, batch_size=batch_size, device=device):
            batch_tasks = {t: k for t, k in label_keys(batch).items() if bool(rows_of(batch[k]).any())}
            found += [t for t in batch_tasks if t not in found]
            batch_tasks = {t: k for t, k in batch_tasks.items() if tasks is None or t in tasks}
            if not batch_tasks:
                continue
            output_s, output_t = outputs_of(student, pick_s(batch)), outputs_of(teacher, pick_t(batch))
            if has_chunks(batch):
                by_chunk.add(student, teacher, output_s, output_t, batch)
                continue
            for task, key in batch_tasks.items():
                pair = _pair(output_s, output_t, task, batch[key], is_named=tasks is not None)
                if pair is None:
                    continue
                if task not in compared:
                    _check_same_classes(student, teacher, task, *pair)
                    compared[task] = _Comparison()
                logits_s, logits_t, labels = *pair, batch[key]
                if labels.ndim == 2 and output_name(output_s, task, labels) == "logits":
                    (logits_s, labels), (logits_t, _) = (
                        aligned(student, logits_s, batch[key]),
                        aligned(teacher, logits_t, batch[key]),
                    )
                compared[task].add(logits_s, logits_t, labels)
    check_tasks(tasks, found)
    found_by_chunk = {"main": by_chunk.result()} if by_chunk.chunks else {}
    return found_by_chunk | {task: comparison.result() for task, comparison in compared.items() if comparison.n}


def cka_table(
    student: nn.Module,
    teacher: nn.Module,
    pairs: Sequence[tuple[str, str, str]],
    batches: Iterable[Mapping[str, Any]],
    *,
    device: torch.device | str | None = None,
    inputs: Iterable[str] | None = None,
) -> list[dict[str, Any]]:
    """Compare the hidden states of matched layers by debiased linear CKA over pooled tokens.

    Every sample is one example: its tokens are averaged, padding left out. Pooling keeps the table cheap and makes
    layers of different length comparable; it says nothing about single tokens.

    Args:
        student: The student.
        teacher: The teacher.
        pairs: (module name, tap in the student, tap in the teacher).
        batches: What the collator made; a few hundred samples in all are enough, four the least.
        device: Where to run; None = where the student is.
        inputs: As in ``fidelity``.

    Returns:
        One ``{"module", "student", "teacher", "cka"}`` per pair, 1 = alike up to rotation and scale.

    Raises:
        RecipeError: A tap matches no module.
        ShapeError: Fewer than four samples, or student and teacher see different numbers of them.
    """
    # Inside, because losses may be absent where only scores are wanted.
    from potstill.losses import cka

    device, inputs = device or device_of(student), None if inputs is None else list(inputs)
    models = [(student, [s for _, s, _ in pairs]), (teacher, [t for _, _, t in pairs])]
    pooled: list[dict[str, list[torch.Tensor]]] = [{}, {}]
    with (
        Taps(student, dict.fromkeys(models[0][1]), where="student taps") as taps_s,
        Taps(teacher, dict.fromkeys(models[1][1]), where="teacher taps") as taps_t,
        measuring(student, teacher),
    ):
        for batch in batches:
            batch = to_device(batch, device)
            for (model, paths), taps, store, own in zip(models, (taps_s, taps_t), pooled, ("", OWN)):
                given = model_inputs(model, inputs, own=own)(batch)
                signal = observe(model, given, taps, (), dict.fromkeys(paths))
                mask = batch.get(f"{own}attention_mask", batch.get("attention_mask"))
                for path, hidden in signal.tapped.items():
                    store.setdefault(path, []).append(pool(hidden, mask))
        table = []
        for module, path_s, path_t in pairs:
            x, y = torch.cat(pooled[0][path_s]), torch.cat(pooled[1][path_t])
            try:
                value = float(cka(x, y, debiased=True))
            except ShapeError as error:
                raise error.at(f"{module} ({path_s} and {path_t})") from None
            table.append({"module": module, "student": path_s, "teacher": path_t, "cka": value})
    return table


def pool(hidden: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return one vector per sample, fp32 ``[N, D]``.

    Args:
        hidden: ``[N, D]``, tokens ``[N, T, D]`` or feature maps ``[N, C, H, W]``.
        attention_mask: 1 or True at valid tokens, ``[B, T]``; used if it fits the hidden states.
    """
    hidden = hidden.float()
    if hidden.ndim == 2:
        return hidden
    if hidden.ndim == 4:
        return hidden.mean((2, 3))
    if hidden.ndim != 3:
        raise ShapeError("cannot be pooled", where="pool", expected="2, 3 or 4 axes", got=tuple(hidden.shape))
    if attention_mask is None or attention_mask.shape != hidden.shape[:2]:
        return hidden.mean(1)
    weight = attention_mask.to(hidden.dtype).unsqueeze(-1)  # [B, T, 1]
    return (hidden * weight).sum(1) / weight.sum(1).clamp_min(1)


@dataclass
class _Comparison:
    n: int = 0
    agreed: int = 0
    bins_s: Bins = field(default_factory=Bins)
    bins_t: Bins = field(default_factory=Bins)
    kl: float = 0.0
    kl_at: torch.Tensor | None = None  # [2, POSITIONS]: sums and counts

    def add(self, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> None:
        from potstill.losses import kd_kl

        counts = labels != IGNORED
        if not bool(counts.any()):
            return
        student, teacher, target = student[counts].float(), teacher[counts].float(), labels[counts]
        kl = kd_kl(student, teacher, reduction="none").double()
        top_s, top_t = student.softmax(-1).max(-1), teacher.softmax(-1).max(-1)
        self.n += len(target)
        self.agreed += int((top_s.indices == top_t.indices).sum())
        self.kl += float(kl.sum())
        self.bins_s.add(top_s.values, top_s.indices == target)
        self.bins_t.add(top_t.values, top_t.indices == target)
        if labels.ndim == 2:
            if self.kl_at is None:
                self.kl_at = torch.zeros(2, POSITIONS, dtype=torch.float64, device=kl.device)
            # The n-th predicted token of a row, whatever stands before it.
            position = counts.cumsum(1)[counts] - 1
            early = position < POSITIONS
            self.kl_at[0].index_add_(0, position[early], kl[early])
            self.kl_at[1].index_add_(0, position[early], torch.ones_like(kl[early]))

    def result(self) -> dict[str, Any]:
        scores = {
            "agreement": self.agreed / self.n,
            "kl": self.kl / self.n,
            "ece": self.bins_s.error(),
            "teacher_ece": self.bins_t.error(),
            "samples": self.n,
        }
        if self.kl_at is not None:
            sums, counts = self.kl_at[:, self.kl_at[1] > 0].tolist()
            scores["kl_by_position"] = [s / c for s, c in zip(sums, counts)]
        return scores


def _pair(
    output_s: Any, output_t: Any, task: str, labels: torch.Tensor, *, is_named: bool
) -> tuple[torch.Tensor, torch.Tensor] | None:
    found = []
    for side, output in (("student", output_s), ("teacher", output_t)):
        try:
            found.append(lookup(output, output_name(output, task, labels)))
        except InputError as error:
            if is_named:
                raise error.at(side) from None
            return None
    return found[0], found[1]


def _check_same_classes(
    student: nn.Module, teacher: nn.Module, task: str, logits_s: torch.Tensor, logits_t: torch.Tensor
) -> None:
    """Refuse to compare class 3 of one model with class 3 of another if they mean different things."""
    if logits_s.shape[-1] != logits_t.shape[-1]:
        raise ShapeError(
            "student and teacher have other classes",
            where=f"task {task}",
            expected=f"{logits_t.shape[-1]} (teacher)",
            got=f"{logits_s.shape[-1]} (student)",
        )
    lists = [(getattr(getattr(m, "config", None), "task_labels", None) or {}).get(task) for m in (student, teacher)]
    if None not in lists and list(lists[0]) != list(lists[1]):
        at = next(i for i, (a, b) in enumerate(zip(*lists)) if a != b)
        raise ShapeError(
            "student and teacher name their classes differently",
            where=f"task {task}, class {at}",
            expected=f'"{lists[1][at]}" (teacher)',
            got=f'"{lists[0][at]}" (student)',
        )
