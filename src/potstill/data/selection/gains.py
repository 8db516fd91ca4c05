"""What a label of a sample would bring, guessed from the student's own doubt."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from potstill.errors import InputError, ShapeError


@torch.no_grad()
def margin_gains(probs: Tensor, eps: float = 1e-3) -> Tensor:
    """Return 1 minus the distance of the two likeliest classes: 1 where the student cannot choose, ``eps`` at least.

    Args:
        probs: The student's probabilities, ``(n, C)`` with C >= 2.
        eps: The least gain, in (0, 1]; 1e-4 to 1e-2. ``rad_distribution`` needs gains above 0.

    Returns:
        ``(n,)``, float64, in [eps, 1].

    Raises:
        InputError: entries below 0 or not finite, rows that do not sum to 1 ± 1e-6, eps outside (0, 1].
        ShapeError: not ``(n, C)``, n < 1 or C < 2.

    Source:
        "Robust Active Distillation", ICLR 2023, arXiv 2210.01213, leaves the gain open; the floor is our choice.

    Example:
        >>> import torch
        >>> margin_gains(torch.tensor([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])).tolist()
        [1.0, 0.5, 0.001]
    """
    probs = checked_probs(probs, "margin_gains")
    _check_floor(eps, "margin_gains")
    top = probs.topk(2, dim=-1).values
    return (1 - (top[:, 0] - top[:, 1])).clamp_min(eps)


@torch.no_grad()
def entropy_gains(probs: Tensor, eps: float = 1e-3) -> Tensor:
    """Return the entropy of each row over its largest possible value, ``eps`` at least; else as ``margin_gains``.

    It also counts the classes beyond the first two, which for many classes are mostly noise.

    Args:
        probs: The student's probabilities, ``(n, C)`` with C >= 2.
        eps: The least gain, in (0, 1].

    Returns:
        ``(n,)``, float64, in [eps, 1].

    Raises:
        InputError: entries below 0 or not finite, rows that do not sum to 1 ± 1e-6, eps outside (0, 1].
        ShapeError: not ``(n, C)``, n < 1 or C < 2.

    Source:
        "Robust Active Distillation", ICLR 2023, arXiv 2210.01213: any positive gain may be used. The scale, which the
        choice does not depend on, is ours.

    Example:
        >>> import torch
        >>> entropy_gains(torch.tensor([[0.5, 0.5], [1.0, 0.0]])).tolist()
        [1.0, 0.001]
    """
    probs = checked_probs(probs, "entropy_gains")
    _check_floor(eps, "entropy_gains")
    entropy = -torch.special.xlogy(probs, probs).sum(-1)
    return (entropy / math.log(probs.shape[-1])).clamp(eps, 1)


def checked_probs(probs: Tensor, where: str) -> Tensor:
    """Return probabilities ``(n, C)`` in float64; refuse what are none."""
    if not isinstance(probs, Tensor) or not probs.is_floating_point():
        raise InputError("no probabilities", where=where, expected="a floating point tensor (n, C)", got=type(probs))
    if probs.ndim != 2 or probs.shape[0] < 1 or probs.shape[1] < 2:
        raise ShapeError("no probabilities", where=where, expected="(n, C), n >= 1, C >= 2", got=list(probs.shape))
    probs = probs.detach().double()
    off = (probs.sum(-1) - 1).abs()
    # Written so that NaN, which compares as False, is refused.
    if not ((probs >= 0).all() and (off <= 1e-6).all()):
        raise InputError(
            "rows are no probabilities",
            where=where,
            expected="entries of 0 or more that sum to 1 ± 1e-6",
            got=f"a row that is off by {off.max().item():.2g}",
            hint="Take the softmax in float32 or better: half precision does not sum to 1.",
        )
    return probs


def _check_floor(eps: float, where: str) -> None:
    if not 0 < eps <= 1:
        raise InputError("eps does not fit", where=where, expected="a number in (0, 1]", got=eps)
