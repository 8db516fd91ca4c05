"""Objectives on what the models return: teacher's outputs, labels, or the model's own loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from potstill.errors import RecipeError
from potstill.losses import TopK, cached_loss
from potstill.losses._cached_term import cached_term
from potstill.losses.fused import LazyLogits, Term, fused_terms, is_by_rows
from potstill.objectives.base import (
    IGNORE_INDEX,
    OBJECTIVES,
    Objective,
    Role,
    Seen,
    Where,
    check_output,
    is_tap,
    outputs_and_taps,
    read_output,
    refuse_unknown_classes,
)


class OutputObjective(Objective):
    """Compares one output of the student with the same output of the teacher, by any loss of ``potstill.losses``.

    Of a cached teacher of whom only some classes are kept, the loss's form in ``cached_loss`` is taken.

    Args:
        name: Its name in logs.
        loss: A loss function ``loss(student, teacher, *, mask, reduction)``.
        on: Dotted name of the output, such as ``logits`` or ``task_logits.vqa``; or, for what a model computes but does
            not return, the tap of one module, such as ``text_decoder.cls@output``.
        teacher_on: The teacher's output, if it has another name.
        where: Which positions count.
        labels: Batch key of target classes, for losses that take them (``dkd``).
        shift: Compare position t with label t+1, for causal language models whose collator does not shift.
        weight: Factor in the loss.
        options: Further keyword arguments of the loss (``temperature``, ...).
    """

    def __init__(
        self,
        name: str,
        loss: Callable[..., torch.Tensor],
        on: str,
        *,
        teacher_on: str | None = None,
        where: Where | None = None,
        shift: bool = False,
        weight: float = 1.0,
        module: str | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        super().__init__(name, weight=weight, module=module)
        self.loss, self.loss_name = loss, loss.__name__
        self.on, self.teacher_on = on, teacher_on or on
        self.where, self.shift, self.options = where or Where(), shift, dict(options or {})
        check_output(on, f"{name}.on")
        check_output(self.teacher_on, f"{name}.teacher_on" if teacher_on else f"{name}.on")
        self.student_outputs, self.student_taps = outputs_and_taps(on)
        self.teacher_outputs, self.teacher_taps = outputs_and_taps(self.teacher_on)
        accepted = inspect.signature(loss).parameters
        unknown = sorted(self.options.keys() - accepted.keys())
        if unknown:
            raise RecipeError(
                f'the loss "{self.loss_name}" takes no "{unknown[0]}"',
                where=f"{name}.options",
                expected=", ".join(p for p in accepted if p not in ("student", "teacher", "mask", "reduction")),
            )
        self._takes_target = "target" in accepted
        if self._takes_target and self.where.labels is None:
            raise RecipeError(f'the loss "{self.loss_name}" needs "labels"', where=name)
        # A loss without "sum" couples the rows of a batch (DIST, CKA): its mean stands for the whole micro-batch.
        self.batch_coupled = "reduction" not in accepted
        self.takes_lazy = is_by_rows(loss) and not is_tap(on) and not is_tap(self.teacher_on)

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Count the positions that have a target."""
        return self.where.count(self._shifted(batch))

    def total(self, seen: Seen, part: nn.Module | None) -> torch.Tensor:
        """Sum the loss over the positions that count."""
        student, teacher = read_output(seen.student, self.on), read_output(seen.teacher, self.teacher_on)
        if isinstance(student, LazyLogits):
            return fused_terms(student, [self.lazy_term(seen)], budget=seen.logits_budget)[0]
        batch = self._shifted(seen.batch)
        loss = self.loss
        if isinstance(teacher, TopK):
            loss = partial(cached_loss, loss=self.loss_name)
        if self.shift:
            student, teacher = student[:, :-1], teacher[:, :-1]
        mask = self.where.mask_of(batch)
        target = (batch[self.where.labels],) if self._takes_target else ()
        if self.batch_coupled:
            return self.loss(student, teacher, *target, mask=mask, **self.options) * self.where.count(batch)
        return loss(student, teacher, *target, mask=mask, reduction="sum", **self.options)

    def lazy_term(self, seen: Seen) -> Term:
        """Return the loss as a term on all positions; under ``shift`` the last one has no label and does not count."""
        student, batch = read_output(seen.student, self.on), self._shifted(seen.batch)
        mask = self.where.mask_of(batch)
        target = [batch[self.where.labels]] if self._takes_target else []
        if self.shift:
            counts = torch.ones(student.hidden[:, :-1].shape[:-1], dtype=torch.bool, device=student.device)
            mask = _one_longer(counts if mask is None else mask, False)
            target = [_one_longer(t, IGNORE_INDEX) for t in target]
        teacher = read_output(seen.teacher, self.teacher_on)
        if isinstance(teacher, TopK):
            return cached_term(teacher, self.loss_name, self.options, mask)
        return Term(self.loss, (teacher, *target), self.options, mask=mask)

    def _shifted(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        if not self.shift:
            return batch
        keys = [k for k in (self.where.mask, self.where.labels) if k]
        return {**batch, **{k: batch[k][:, 1:] for k in keys}}


@OBJECTIVES.register("cross_entropy")
class LabelObjective(Objective):
    """Cross-entropy of an output with the labels of the batch; positions labelled -100 do not count.

    A stage without a teacher trains on these alone.
    """

    role: Role = "task"
    loss_name = "cross_entropy"

    def __init__(
        self, name: str, on: str, labels: str, *, shift: bool = False, weight: float = 1.0, label_smoothing: float = 0.0
    ):
        super().__init__(name, weight=weight)
        if not 0 <= label_smoothing < 1:
            raise RecipeError("must lie in [0, 1)", where=f"{name}.label_smoothing", got=label_smoothing)
        self.on, self.labels, self.shift, self.label_smoothing = on, labels, shift, label_smoothing
        check_output(on, f"{name}.on")
        self.student_outputs, self.student_taps = outputs_and_taps(on)
        self.takes_lazy = not is_tap(on)

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Count the labels that are not -100."""
        return Where(labels=self.labels).count({self.labels: self._targets(batch)})

    def total(self, seen: Seen, part: nn.Module | None) -> torch.Tensor:
        """Sum the cross-entropy in nats."""
        logits = read_output(seen.student, self.on)
        if isinstance(logits, LazyLogits):
            return fused_terms(logits, [self.lazy_term(seen)], budget=seen.logits_budget)[0]
        logits = logits[:, :-1] if self.shift else logits
        targets = self._targets(seen.batch)
        self._check(targets, logits.shape)
        return F.cross_entropy(
            logits.flatten(0, -2).float(),
            targets.flatten(),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )

    def lazy_term(self, seen: Seen) -> Term:
        """Return the cross-entropy as a term on all positions; under ``shift`` the last one has no label."""
        logits, targets = read_output(seen.student, self.on), self._targets(seen.batch)
        targets = _one_longer(targets, IGNORE_INDEX) if self.shift else targets
        self._check(targets, logits.shape)
        return Term(F.cross_entropy, (targets,), {"label_smoothing": self.label_smoothing})

    def _check(self, targets: torch.Tensor, shape: torch.Size) -> None:
        if shape[:-1] != targets.shape:
            raise RecipeError(
                f'output "{self.on}" and labels "{self.labels}" do not fit',
                where=self.name,
                expected=f"labels of shape {tuple(shape[:-1])}",
                got=tuple(targets.shape),
            )
        refuse_unknown_classes(targets, shape[-1], self.name)

    def _targets(self, batch: Mapping[str, Any]) -> torch.Tensor:
        if self.labels not in batch:
            raise RecipeError(f'the batch has no "{self.labels}"', where=self.name)
        return batch[self.labels][:, 1:] if self.shift else batch[self.labels]


def _one_longer(rows: torch.Tensor, value: float) -> torch.Tensor:
    """Append a position to every row of ``[B, T]``."""
    return F.pad(rows, (0, 1), value=value)


@OBJECTIVES.register("model_loss")
class ModelLossObjective(Objective):
    """The model's own ``loss`` (contrastive + captioning for CoCa), for any model that computes one from labels.

    Its normalisation is the model's: under accumulation it is averaged over micro-batches.
    """

    role: Role = "task"
    loss_name = "model_loss"
    batch_coupled = True
    needs_labels = True
    student_outputs = ("loss",)

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Count the rows."""
        return Where().count(batch)

    def total(self, seen: Seen, part: nn.Module | None) -> torch.Tensor:
        """Weigh the model's mean by the rows of the micro-batch."""
        return seen.student.outputs["loss"].float() * self.count(seen.batch)
