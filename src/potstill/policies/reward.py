"""The reward of a round: how far the reference loss fell."""

from __future__ import annotations

import math

from potstill.errors import InputError, RecipeError, suggest
from potstill.policies.posterior import as_float

MODES = ("relative", "absolute")


class _NotGiven(float):
    """A number that knows nobody asked for it: lets the default clip act in one mode only."""


_DEFAULT_CLIP = _NotGiven(1.0)


def loss_decrement_reward(
    before: float,
    after: float,
    mode: str = "relative",
    clip: float | None = _DEFAULT_CLIP,
    eps: float = 1e-8,
) -> float:
    """Return the reward of a round from the loss before and after it; above 0 when the loss fell.

    The relative form keeps rewards of early and late training comparable while the loss shrinks. Take both losses on
    the same samples: between two different mini-batches the noise of the batches is larger than the decrement.

    Args:
        before: Loss at the start of the round; a number or a 0-d tensor.
        after: Loss at its end, on the same samples.
        mode: "relative" = ``(before - after) / max(|before|, eps)``; "absolute" = ``before - after``.
        clip: Limit of the reward's size. Left out, it is 1 for "relative" and none for "absolute", whose unit is the
            loss's own; a number limits either mode, None limits neither.
        eps: Smallest divisor of the relative mode, same unit as the loss.

    Returns:
        The reward, a plain float.

    Raises:
        InputError: a loss that is not finite, or a clip or eps that is not above 0.
        RecipeError: an unknown mode.

    Source:
        arXiv 2310.04550 rewards the decrement of the loss; the relative form and the clip are Potstill's choice.

    Example:
        >>> loss_decrement_reward(2.0, 1.5)
        0.25
        >>> loss_decrement_reward(5.0, 2.0, mode="absolute")
        3.0
    """
    if mode not in MODES:
        raise RecipeError(f'unknown reward mode "{mode}"', where="mode", hint=suggest(str(mode), MODES))
    if isinstance(clip, _NotGiven):
        clip = None if mode == "absolute" else float(clip)
    for name, limit in (("clip", clip), ("eps", eps)):
        if limit is not None and not limit > 0:
            raise InputError("not a limit", where=name, expected="a number above 0", got=limit)
    before, after = as_float(before, "before"), as_float(after, "after")
    for name, loss in (("before", before), ("after", after)):
        if not math.isfinite(loss):
            raise InputError("the loss is not finite", where=name, got=loss, hint="No reward can be made from it.")
    reward = before - after
    if mode == "relative":
        reward /= max(abs(before), eps)
    return reward if clip is None else max(-clip, min(clip, reward))
