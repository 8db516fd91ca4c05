"""MiniLLM: reverse KL of whole answers that the student writes, beside text of the data."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from potstill.errors import InputError
from potstill.objectives.base import TEACHER
from potstill.systems.given_models import GIVEN, GivenModels


class MiniLLMPipeline(GivenModels):
    """Trains a causal language model on its own answers, weighed by what the teacher thinks of them.

    For instruction data, and a student that has been trained on that data already: one that writes nothing sensible
    learns little from its own text. Half of the rows of a batch are written by the student, mixed with the teacher;
    the others keep the text of the data from being forgotten. Costs one generation per step; if that is too dear,
    ``kd_kl`` on the data, or on what a teacher wrote once (``SeqKDGenerator``), comes first.

    Args:
        student: A causal language model.
        teacher: One with the same tokenizer.
        alpha: Share of the teacher in what is drawn from.
        max_new_tokens: Most tokens of an answer.
        temperature: Of the drawing.
        lmbda: Share of rows that the student writes.
        text_weight: Factor of the terms on the data.
        kd_ratio: Share in it of the KL to the teacher; the rest is cross-entropy.
        buffer: Rows that are kept to be used again.
        reuse: Chance that rows come from there.
        returns: See ``MiniLLMObjective``.
        objective: Further options of "minillm" (``gamma``, ``whiten``, ``reward_clip``, ...).

    Raises:
        InputError: kd_ratio outside [0, 1].

    Source:
        Gu et al., "MiniLLM", ICLR 2024 (arXiv 2306.08543): alpha 0.2, rate 5e-6, answers written anew every few steps;
        the text term and its halves are those of the authors' code. ``docs/language-models/on-policy.md`` says where we
        depart.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        alpha: float = 0.2,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        lmbda: float = 0.5,
        text_weight: float = 1.0,
        kd_ratio: float = 0.5,
        buffer: int = 0,
        reuse: float = 0.0,
        returns: Literal["normalised", "future_only", "future_sum"] = "normalised",
        objective: dict[str, Any] | None = None,
    ):
        super().__init__(student, {TEACHER: teacher})
        if not 0 <= kd_ratio <= 1:
            raise InputError("does not fit", where="kd_ratio", expected="a number in [0, 1]", got=kd_ratio)
        self.rollout = {
            "lmbda": lmbda,
            "per": "row",
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "alpha": alpha,
            "buffer": buffer,
            "reuse": reuse,
        }
        data = {"on": "logits", "labels": "data_labels", "shift": True}
        self.objectives = [
            {"loss": "minillm", "on": "logits", "returns": returns, **(objective or {})},
            {"loss": "cross_entropy", "name": "text", "weight": text_weight * (1 - kd_ratio), **data},
            {"loss": "kd_kl", "name": "text_kd", "weight": text_weight * kd_ratio, **data},
        ]

    def recipe(self) -> dict[str, Any]:
        """Return teacher, objectives and rollouts as a recipe has them."""
        return {"teacher": {"model": GIVEN}, "objectives": self.objectives, "rollout": self.rollout}
