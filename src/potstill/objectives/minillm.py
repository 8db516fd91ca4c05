"""MiniLLM's objective: reverse KL of whole answers that the student wrote, by an exact step and a policy gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from potstill.errors import RecipeError
from potstill.losses import minillm_returns, reverse_kl
from potstill.losses.fused import LazyLogits, Term, fused_terms, token_log_probs
from potstill.objectives.base import IGNORE_INDEX, OBJECTIVES, Objective, Seen, check_number

RETURNS = ("normalised", "future_only", "future_sum")


@OBJECTIVES.register("minillm")
class MiniLLMObjective(Objective):
    """Reverse KL of whole answers, on answers drawn from the student or from a mixture with the teacher.

    Per written token y_t: the reverse KL of the next-token distributions, whose gradient is exact, plus
    -w_t · R_t · log q(y_t) with R_t the sum of log p - log q still to come, detached, and w_t = q(y_t) over the
    probability it was drawn with. Needs the recipe's ``rollout``, which writes the answers and says how likely each
    token was. Beside it belongs a term on text of the data (``cross_entropy`` with ``labels: data_labels``), or the
    student forgets. With short answers, or few steps, ``reverse_kl`` on rollouts costs the same and is steadier.

    Args:
        name: Its name in logs.
        on: Output of both models with token logits, ``[B, L, V]``.
        labels: Batch key of the written tokens; -100 elsewhere.
        log_probs: Batch key of their log-probability where they were drawn.
        returns: What R_t sums: "normalised" = rewards from t on over the tokens left (the authors' code), "future_only"
            = rewards after t over the tokens after t (the paper's equation), "future_sum" = rewards after t, whose
            gradient is that of the sequence-level KL.
        gamma: Discount of later rewards, in [0, 1].
        whiten: Give the returns of a micro-batch mean 0 and deviation 1, as the authors do; the value then depends on
            how a batch is split.
        reward_clip: Rewards log p - log q are cut to ± this many nats.
        max_weight: Highest w_t; reached only by text that was written long ago, from a replay buffer.
        weight: Factor in the loss.

    Source:
        Gu et al., "MiniLLM", ICLR 2024, equations 3 to 7. Departures: the ratio to the policy that wrote the text is a
        weight cut from above, in place of PPO's clipped objective, which differs only when text is used again.
    """

    loss_name = "minillm"
    takes_lazy = True

    def __init__(
        self,
        name: str,
        on: str,
        *,
        labels: str = "rollout_labels",
        log_probs: str = "rollout_log_probs",
        returns: Literal["normalised", "future_only", "future_sum"] = "normalised",
        gamma: float = 1.0,
        whiten: bool = True,
        reward_clip: float = 100.0,
        max_weight: float = 10.0,
        weight: float = 1.0,
    ):
        super().__init__(name, weight=weight)
        if returns not in RETURNS:
            raise RecipeError("does not fit", where=f"{name}.returns", expected=", ".join(RETURNS), got=returns)
        check_number(gamma, f"{name}.gamma", 0, 1)
        check_number(reward_clip, f"{name}.reward_clip", 0, is_open=True)
        check_number(max_weight, f"{name}.max_weight", 0, is_open=True)
        self.on, self.labels, self.log_probs, self.returns, self.gamma = on, labels, log_probs, returns, gamma
        self.batch_coupled = self.whiten = whiten
        self.reward_clip, self.max_weight = reward_clip, max_weight
        self.student_outputs = self.teacher_outputs = (on,)

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Count the written tokens."""
        return self._kept(batch).sum(dtype=torch.float64)

    def total(self, seen: Seen, part: nn.Module | None) -> torch.Tensor:
        """Sum both parts over the written tokens, in nats."""
        # What a position says is of the token behind it, so the last one says nothing that counts.
        kept = F.pad(self._kept(seen.batch), (0, 1))
        tokens = F.pad(seen.batch[self.labels][:, 1:], (0, 1)).masked_fill(~kept, 0)
        drawn = F.pad(seen.batch[self.log_probs][:, 1:], (0, 1))
        student, teacher = (signal.outputs[self.on] for signal in (seen.student, seen.teacher))
        with torch.no_grad():
            log_q, log_p = (_of_tokens(x, tokens, kept, seen.logits_budget) for x in (student, teacher))
            advantage = self._advantage(log_p - log_q, kept)
            advantage = advantage * (log_q - drawn.to(log_q)).exp().clamp_max(self.max_weight)
        if isinstance(student, LazyLogits):
            single = Term(reverse_kl, (teacher,), mask=kept)
            long = Term(F.cross_entropy, (tokens,), mask=kept, weights=advantage)
            return fused_terms(student, [single, long], budget=seen.logits_budget)[0]
        chosen = F.cross_entropy(student[kept].float(), tokens[kept], reduction="none")
        return reverse_kl(student, teacher, mask=kept, reduction="sum") + (advantage[kept] * chosen).sum()

    def _advantage(self, gap: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Return R_t for every position, 0 where nothing was written."""
        rewards = gap.clamp(-self.reward_clip, self.reward_clip).masked_fill(~kept, 0)
        returns = minillm_returns(rewards, kept, self.gamma)
        found = returns.raw - rewards if self.returns == "future_sum" else getattr(returns, self.returns)
        if self.whiten and kept.sum() > 1:
            own = found[kept]
            found = (found - own.mean()) / own.std().clamp_min(1e-6)
        return found.masked_fill(~kept, 0)

    def _kept(self, batch: Mapping[str, Any]) -> torch.Tensor:
        for key in (self.labels, self.log_probs):
            if key not in batch:
                raise RecipeError(
                    f'the batch has no "{key}"',
                    where=self.name,
                    hint="Give the recipe a rollout section: the student has to write the text it is judged on.",
                )
        return batch[self.labels][:, 1:] != IGNORE_INDEX


def _of_tokens(
    logits: torch.Tensor | LazyLogits, tokens: torch.Tensor, kept: torch.Tensor, budget: int
) -> torch.Tensor:
    """Return the log-probability of one token per position, 0 where none counts."""
    if isinstance(logits, LazyLogits):
        return token_log_probs(logits, tokens, mask=kept, budget=budget).log_probs
    found = -F.cross_entropy(logits[kept].float(), tokens[kept], reduction="none")
    return torch.zeros(kept.shape, dtype=found.dtype, device=found.device).masked_scatter(kept, found)
