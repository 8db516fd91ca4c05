"""The small network that gives DAC-KL its band: which part of the teacher's classes a student is to match."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from potstill.errors import InputError
from potstill.losses._common import CUT_CLASSES, checked_logits, full_pair, log_probs, run_layers, without_autocast

_LEAST_BAND = 1e-4  # both levels can round to the same number at 1
_LEAST_LOG_PROB = -30.0  # a banned class (-inf) is nothing a network can take in
_UPPER, _LOWER = 0.9995, 0.9


class QuantileNet(nn.Module):
    """Predict for every token the levels of DAC-KL's band from what both models think of the teacher's best classes.

    Trained along with the student, by the same loss and a penalty on what the gate leaves out (``dac_kl_tokens``). It
    begins with the band from 0.9 to 0.9995 everywhere. Not worth it where a fixed band will do: compare with one.

    Args:
        M: Number of the teacher's largest classes it looks at; a smaller vocabulary is filled up.
        hidden: Width of its hidden layer.

    Raises:
        InputError: M or hidden below 1.
        ShapeError: in ``forward``, logits that do not fit together.

    Source:
        arXiv 2407.10068 has such a network without telling its inputs or size; those, and its start, are ours.

    Example:
        >>> import torch
        >>> lower, upper = QuantileNet()(torch.randn(2, 3, 100), torch.randn(2, 3, 100))
        >>> lower.shape, round(lower[0, 0].item(), 4), round(upper[0, 0].item(), 4)
        (torch.Size([2, 3]), 0.9, 0.9995)
    """

    def __init__(self, M: int = 64, hidden: int = 64):
        super().__init__()
        for field, value in (("M", M), ("hidden", hidden)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError("does not fit", where=f"QuantileNet.{field}", expected="at least 1", got=value)
        self.M = M
        self.layers = nn.Sequential(nn.Linear(2 * M, hidden), nn.GELU(), nn.Linear(hidden, 2))
        with torch.no_grad():
            self.layers[-1].weight.zero_()
            self.layers[-1].bias.copy_(torch.tensor([_logit(_UPPER), _logit(_LOWER / _UPPER)]))

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the levels ``(lower, upper)``, each ``(...)``, of logits ``(..., V)``; both models are detached."""
        name = "QuantileNet"
        student, teacher = checked_logits(student_logits, teacher_logits, None, None, name, CUT_CLASSES)
        with torch.no_grad():
            student, teacher = full_pair(student, teacher, name)
            lp, classes = log_probs(teacher).topk(min(self.M, teacher.shape[-1]), dim=-1)
            lq = log_probs(student).gather(-1, classes)
            lack = self.M - lp.shape[-1]
            seen = [nn.functional.pad(x.clamp_min(_LEAST_LOG_PROB), (0, lack), value=_LEAST_LOG_PROB) for x in (lp, lq)]
        with without_autocast(lp):
            a, b = run_layers(self.layers, torch.cat(seen, dim=-1)).unbind(-1)
        upper = a.sigmoid().clamp_min(_LEAST_BAND)
        return torch.minimum(upper * b.sigmoid(), upper - _LEAST_BAND), upper


def _logit(p: float) -> float:
    return math.log(p / (1 - p))
