"""MiniLLM: the two pure functions of its policy gradient, returns and the sampling mixture."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import check_mask, check_positive, check_unit, log_probs, logit_pair


class MinillmReturns(NamedTuple):
    """Returns of every step, each ``(..., T)``, 0 at masked positions, without a graph."""

    raw: Tensor
    """Rewards from this step on, its own included."""
    normalised: Tensor
    """``raw`` divided by the number of kept steps from this one on."""
    future_only: Tensor
    """Rewards after this step divided by the number of kept steps after it; 0 at the last one."""


def minillm_returns(rewards: Tensor, mask: Tensor | None = None, gamma: float = 1.0) -> MinillmReturns:
    """Sum the rewards still to come at each step of a sampled answer.

    For the long part of the MiniLLM gradient: the weight of log q(y_t). ``normalised`` keeps long answers from being
    punished for their length and is what the authors train with; ``future_only`` is the form of the paper's equation,
    right beside the exact single-step term, which already accounts for the step itself.

    Args:
        rewards: r_t = log p(y_t) - log q(y_t), ``(..., T)``, in nats; detached.
        mask: True at steps of the answer, ``(..., T)``; None = all. Prompt and padding are False.
        gamma: Discount per position, in [0, 1].

    Returns:
        A named tuple ``(raw, normalised, future_only)`` in nats.

    Raises:
        InputError: gamma outside [0, 1]; rewards not floating point; mask not bool.
        ShapeError: rewards without a time axis; the mask does not fit.

    Source:
        Gu et al., "MiniLLM", ICLR 2024, equations 4 to 6. Divides by kept steps, not by discounted ones.

    Example:
        >>> import torch
        >>> [part.tolist() for part in minillm_returns(torch.tensor([1.0, 2.0, 3.0]))]
        [[6.0, 5.0, 3.0], [2.0, 2.5, 3.0], [2.5, 3.0, 0.0]]
    """
    check_unit(gamma, "minillm_returns", "gamma")
    if not rewards.is_floating_point():
        raise InputError("rewards are not floating point", where="minillm_returns", got=rewards.dtype)
    if rewards.ndim == 0:
        raise ShapeError("rewards have no time axis", where="minillm_returns", expected="(..., T)")
    check_mask(mask, rewards.shape, "minillm_returns", "(..., T)")
    rewards = rewards.detach().to(torch.promote_types(rewards.dtype, torch.float32))
    kept = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask
    rewards = rewards.masked_fill(~kept, 0)
    raw, future = torch.zeros_like(rewards), torch.zeros_like(rewards)
    ahead = rewards.new_zeros(rewards.shape[:-1])
    for t in reversed(range(rewards.shape[-1])):
        future[..., t] = gamma * ahead
        ahead = rewards[..., t] + gamma * ahead
        raw[..., t] = ahead
    from_here = kept.flip(-1).cumsum(-1).flip(-1)
    normalised = raw / from_here.clamp_min(1)
    future = future / (from_here - 1).clamp_min(1)
    return MinillmReturns(*(part.masked_fill(~kept, 0) for part in (raw, normalised, future)))


def teacher_mixed_probs(
    student: Tensor,
    teacher: Tensor,
    alpha: float = 0.2,
    *,
    temperature: float = 1.0,
    shared_vocab: int | None = None,
) -> Tensor:
    """Mix next-token distributions for sampling: alpha p + (1 - alpha) q, p the teacher's and q the student's.

    Sampling from the mixture keeps a weak student from wandering into text that teaches nothing. The loss on such text
    is re-weighted by q / mixture, detached. Not needed when the student already writes decent answers (``alpha`` = 0
    is plain on-policy sampling).

    Args:
        student: Student logits, ``(..., V)``.
        teacher: Teacher logits, ``(..., V)``; no gradient flows into them.
        alpha: Share of the teacher, in [0, 1].
        temperature: T; both logits are divided by it.
        shared_vocab: Cut both vocabularies to the first n classes and renormalise.

    Returns:
        Probabilities, ``(..., V)``, rows sum to 1; differentiable in the student.

    Raises:
        InputError: alpha outside [0, 1]; temperature not above 0.
        ShapeError: vocabularies or leading shapes do not fit.

    Source:
        Gu et al., "MiniLLM", ICLR 2024, section 2.2, teacher-mixed sampling.

    Example:
        >>> import math, torch
        >>> mixed = teacher_mixed_probs(torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]]), alpha=0.2)
        >>> [round(prob, 6) for prob in mixed[0].tolist()]
        [0.55, 0.45]
    """
    check_unit(alpha, "teacher_mixed_probs", "alpha")
    check_positive(temperature, "teacher_mixed_probs", "temperature")
    student, teacher = logit_pair(student, teacher, None, shared_vocab, "teacher_mixed_probs")
    return alpha * log_probs(teacher, temperature).exp() + (1 - alpha) * log_probs(student, temperature).exp()
