"""DAC-KL as an objective: forward KL on the teacher's band of classes, its ends learned or fixed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from potstill.errors import RecipeError
from potstill.losses import QuantileNet, dac_kl_tokens
from potstill.objectives.base import (
    OBJECTIVES,
    Objective,
    Seen,
    Where,
    check_output,
    outputs_and_taps,
    read_output,
)
from potstill.objectives.running_means import RunningMeans
from potstill.taps import Signal

PATIENCE, EVERY = 200, 50
CLOSED = 0.2
"""How far below what it should let through a gate may fall before a warning."""


class Band(nn.Module):
    """The network that predicts the band, if it is learned, and what the gate let through lately."""

    def __init__(self, net: QuantileNet | None):
        super().__init__()
        self.net = net
        self.means = RunningMeans(["coverage", "kept"])


@OBJECTIVES.register("dac_kl")
class DacKLObjective(Objective):
    """Forward KL on a band of the teacher's classes: ``potstill.losses.dac_kl_loss``.

    Without ``lower`` and ``upper`` a small network learns the band for every token, with soft edges; with both the band
    is the same everywhere and its edges are hard. The true class is always kept. A sum over tokens: gradients do not
    depend on how a batch is split. The history notes the coverage (share of the teacher that passes the gate) and how
    many classes are kept.

    Args:
        name: Its name in logs.
        on: Logits, ``[B, L, V]`` or ``[B, V]``.
        labels: Batch key of the true classes; -100 does not count.
        teacher_on: The teacher's output, if it has another name.
        shift: Compare position t with label t+1, for causal language models whose collator does not shift.
        lower: Level of the band's lower end in [0, 1], such as 0.5; null = learned.
        upper: Level of its upper end, such as 1; null = learned.
        temperature: Both logits are divided by it.
        sharpness: Width of a learned band's edges in nats.
        coverage: Share of the teacher that a learned band is to let through.
        penalty: Nats for a token that lets nothing through; below 10 the gate closes.
        M: Number of the teacher's largest classes the network looks at.
        hidden: Width of its hidden layer.
        weight: Factor in the loss.
    """

    loss_name = "dac_kl"

    def __init__(
        self,
        name: str,
        on: str,
        labels: str,
        *,
        teacher_on: str | None = None,
        shift: bool = False,
        lower: float | None = None,
        upper: float | None = None,
        temperature: float = 1.0,
        sharpness: float = 0.5,
        coverage: float = 0.9,
        penalty: float = 10.0,
        M: int = 64,
        hidden: int = 64,
        weight: float = 1.0,
    ):
        super().__init__(name, weight=weight)
        if (lower is None) != (upper is None):
            missing = "lower" if lower is None else "upper"
            raise RecipeError("is missing: a band has two ends", where=f"{name}.{missing}", hint="Give both or none.")
        if lower is not None and not 0 <= lower < upper <= 1:
            raise RecipeError(
                "is no band", where=f"{name}.lower", expected="0 <= lower < upper <= 1", got=[lower, upper]
            )
        if not 0 < coverage <= 1:
            raise RecipeError("does not fit", where=f"{name}.coverage", expected="a number in (0, 1]", got=coverage)
        if not 0 <= penalty < float("inf"):
            raise RecipeError("does not fit", where=f"{name}.penalty", expected="0 or more", got=penalty)
        for field, value in (("temperature", temperature), ("sharpness", sharpness)):
            if not 0 < value < float("inf"):
                raise RecipeError("does not fit", where=f"{name}.{field}", expected="above 0", got=value)
        check_output(on, f"{name}.on")
        check_output(teacher_on or on, f"{name}.teacher_on" if teacher_on else f"{name}.on")
        self.on, self.teacher_on, self.labels, self.shift = on, teacher_on or on, labels, shift
        self.fixed = None if lower is None else (float(lower), float(upper))
        self.gate = {
            "temperature": temperature,
            "mode": "soft" if self.fixed is None else "hard",
            "sharpness": sharpness,
        }
        self.coverage, self.penalty, self.sizes = coverage, penalty, {"M": M, "hidden": hidden}
        self.student_outputs, self.student_taps = outputs_and_taps(on)
        self.teacher_outputs, self.teacher_taps = outputs_and_taps(self.teacher_on)
        self._steps, self._warned = 0, False

    def build_part(self, student: Signal, teacher: Signal | None) -> Band:
        """Return the network, unless the band is fixed, and room for what is noted."""
        return Band(None if self.fixed else QuantileNet(**self.sizes))

    def before_step(self, student: nn.Module, part: nn.Module | None) -> None:
        """Look, now and then, whether the gate has closed."""
        self._steps += 1
        if part is None or part.net is None or self._warned or self._steps % EVERY:
            return
        if part.means.batches < PATIENCE or (found := part.means.read()["coverage"]) > self.coverage - CLOSED:
            return
        self._warned = True
        warnings.warn(
            f"{self.name}: the learned band lets {found:.2f} of the teacher through, not {self.coverage:g}: it "
            "closes, and little is distilled. Raise its penalty, or give lower and upper.",
            stacklevel=2,
        )

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Count the positions that have a label."""
        return self._counting(batch)[1].sum(dtype=torch.float64)

    def total(self, seen: Seen, part: nn.Module | None) -> torch.Tensor:
        """Sum over the positions that count, in nats; with the penalty where the band is learned."""
        student, teacher = read_output(seen.student, self.on), read_output(seen.teacher, self.teacher_on)
        if self.shift:
            student, teacher = student[:, :-1], teacher[:, :-1]
        labels, mask = self._counting(seen.batch)
        student, teacher = student[mask], teacher[mask]
        lower, upper = self.fixed or part.net(student, teacher)
        tokens = dac_kl_tokens(student, teacher, lower, upper, labels[mask], **self.gate)
        total = tokens.kl.sum()
        if self.fixed is None:
            total = total + self.penalty * (self.coverage - tokens.coverage).relu().sum()
        if part.training and len(tokens.kl):
            part.means.take(tokens.coverage.mean(), tokens.kept.mean())
        return total

    def notes(self, part: nn.Module | None) -> dict[str, float]:
        """Return the coverage of the gate and the number of classes it keeps."""
        return part.means.read()

    def _counting(self, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the labels and which of them count."""
        if self.labels not in batch:
            raise RecipeError(f'the batch has no "{self.labels}"', where=self.name)
        labels, mask = batch[self.labels], Where(labels=self.labels).mask_of(batch)
        return (labels[:, 1:], mask[:, 1:]) if self.shift else (labels, mask)
