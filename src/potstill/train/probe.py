"""The yardstick of a policy: a fixed set of batches on which the student is measured after every round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from potstill.errors import NumericsError
from potstill.policies import loss_decrement_reward
from potstill.train.module import DistillModule, Signals

Yardstick = Literal["reference", "per_term", "prediction"]
YARDSTICKS: tuple[Yardstick, ...] = ("reference", "per_term", "prediction")


class Probe:
    """Batches drawn once, with the teacher's signals kept, and the value of every term on them.

    One mini-batch before and another after a round would measure the batches, not the round.

    Args:
        batches: This rank's share of the probe set, on the device.
        signals: The signal of the teacher, or of several by name, per batch; None without a teacher.
    """

    def __init__(self, batches: Sequence[Mapping[str, Any]], signals: Sequence[Signals]):
        self.batches, self.signals = list(batches), list(signals)

    @torch.no_grad()
    def measure(self, module: DistillModule, reduce=lambda tensor: tensor) -> dict[str, float]:
        """Return every term's mean over the probe set, in eval mode.

        Args:
            module: The unwrapped module; nothing here has a gradient.
            reduce: Sums a tensor over all ranks.
        """
        was_training = module.training
        module.eval()
        names = [o.name for o in module.objectives]
        sums = torch.zeros(2, len(names), dtype=torch.float64, device=next(module.parameters()).device)
        for batch, signal in zip(self.batches, self.signals):
            output = module(batch, signal)
            for i, name in enumerate(names):
                if name in output.totals:
                    sums[0, i] += output.totals[name].double()
                    sums[1, i] += output.counts[name].double()
        module.train(was_training)
        total, count = reduce(sums)
        return dict(zip(names, (total / count.clamp_min(1)).tolist()))


def check_probe(values: Mapping[str, float], module: DistillModule, step: int) -> None:
    """Raise ``NumericsError`` that names step, term and module if a value on the probe set is NaN or Inf.

    The probe set stays the same and no step is taken on it: skipping helps nothing, the student is broken.
    """
    for objective in module.objectives:
        value = values[objective.name]
        if not math.isfinite(value):
            raise NumericsError(
                f'the term "{objective.name}" became {value} on the probe set',
                where=f"step {step}" + (f", module {objective.module}" if objective.module else ""),
                hint="Start again in a new folder with a lower train.learning_rate; the checkpoints so far are kept.",
            )


def yardstick_value(values: Mapping[str, float], module: DistillModule, kind: Yardstick) -> float:
    """Return one number for the probe's values: the full weighted loss, or that of the prediction terms alone."""
    chosen = [o for o in module.objectives if kind != "prediction" or o.role == "prediction"]
    return sum(module.weight_of(o) * values[o.name] for o in chosen)


def reward_of(
    before: Mapping[str, float],
    after: Mapping[str, float],
    module: DistillModule,
    kind: Yardstick,
    *,
    mode: str = "relative",
    clip: float | None = 1.0,
) -> float:
    """Return how much a round lowered the loss.

    ``reference``: decrement of Σ weight · term over all terms, hidden terms of resting modules included (the OPTIMA
    card). ``prediction``: of the prediction terms alone, so that an arm earns nothing by lowering its own hidden term.
    ``per_term``: mean of the relative decrements of all terms, which weighs small terms like large ones.
    """
    if kind == "per_term":
        parts = [
            loss_decrement_reward(before[o.name], after[o.name], "relative", clip)
            for o in module.objectives
            if o.weight
        ]
        return sum(parts) / len(parts)
    return loss_decrement_reward(
        yardstick_value(before, module, kind), yardstick_value(after, module, kind), mode, clip
    )
