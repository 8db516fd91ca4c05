"""Attention probabilities rebuilt from queries and keys, where fused attention returns none."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from potstill.errors import InputError, ShapeError


def attention_probs(
    query: Tensor,
    key: Tensor,
    scaling: float,
    position_bias: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Return softmax(scaling · q kᵀ + position_bias + mask): what eager attention multiplies the values with.

    Args:
        query: Queries split into heads, after rotary positions, ``(B, H, Q, d)``.
        key: Keys, ``(B, Hkv, K, d)``; each serves H / Hkv heads in a row of queries.
        scaling: Factor of the scores, usually d ** -0.5; T5 has 1.
        position_bias: Added to the scores, fits ``(B, H, Q, K)`` by broadcasting (T5).
        attention_mask: Fits ``(B, H, Q, K)`` by broadcasting. bool, True = may be looked at; or numbers added to the
            scores. None = all keys, also in causal models.

    Returns:
        ``(B, H, Q, K)`` before dropout, float32, or float64 if queries or keys are. A row all of whose keys are
        forbidden (of a padding token) is even over all keys, as in eager attention of transformers; 0 if they are
        forbidden by -inf.

    Raises:
        InputError: queries or keys not floating point; a mask neither bool nor floating point.
        ShapeError: not four axes; B or d differ; H no multiple of Hkv; mask or bias do not fit.

    Example:
        >>> import math, torch
        >>> query, key = torch.ones(1, 1, 1, 1), torch.tensor([[[[math.log(3)], [0.0]]]])
        >>> [round(p, 6) for p in attention_probs(query, key, 1.0).flatten().tolist()]
        [0.75, 0.25]
    """
    where = "attention_probs"
    for name, x in (("query", query), ("key", key)):
        if not x.is_floating_point():
            raise InputError(f"{name} is not floating point", where=where, got=x.dtype)
    if query.ndim != 4 or key.ndim != 4 or query.shape[0] != key.shape[0] or query.shape[-1] != key.shape[-1]:
        raise ShapeError(
            "queries and keys do not fit",
            where=where,
            expected="query (B, H, Q, d) and key (B, Hkv, K, d)",
            got=f"query {list(query.shape)}, key {list(key.shape)}",
        )
    B, H, Q, d = query.shape
    _, H_kv, K, _ = key.shape
    if H_kv == 0 or H % H_kv:
        raise ShapeError(
            "heads do not share keys evenly", where=where, expected=f"H a multiple of Hkv = {H_kv}", got=f"H = {H}"
        )
    dtype = torch.promote_types(torch.promote_types(query.dtype, key.dtype), torch.float32)
    kind = query.device.type
    plain = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
    with plain:
        grouped = query.to(dtype).reshape(B, H_kv, H // H_kv * Q, d)  # heads of a group stand in a row
        scores = (grouped @ key.to(dtype).transpose(-1, -2)).reshape(B, H, Q, K) * scaling
    if position_bias is not None:
        _check_fits(position_bias, scores, "position_bias")
        scores = scores + position_bias.to(dtype)
    if attention_mask is None:
        return scores.softmax(-1)
    _check_fits(attention_mask, scores, "attention_mask")
    if attention_mask.dtype == torch.bool:
        return scores.masked_fill(~attention_mask, torch.finfo(dtype).min).softmax(-1)
    if not attention_mask.is_floating_point():
        raise InputError(
            "attention_mask is neither bool nor floating point",
            where=where,
            expected="torch.bool, True = may be looked at, or numbers to add",
            got=attention_mask.dtype,
            hint="Of ones and zeros: mask.bool().",
        )
    scores = scores + attention_mask.to(dtype)
    # A softmax over nothing is NaN, in value and gradient.
    forbidden = (scores == -torch.inf).all(-1, keepdim=True)
    return scores.masked_fill(forbidden, 0).softmax(-1).masked_fill(forbidden, 0)


def _check_fits(x: Tensor, scores: Tensor, name: str) -> None:
    fits = x.ndim <= 4 and all(a in (1, b) for a, b in zip(reversed(x.shape), reversed(scores.shape)))
    if not fits:
        raise ShapeError(
            f"{name} does not fit",
            where="attention_probs",
            expected=f"(B, H, Q, K) = {list(scores.shape)}, axes of size 1 allowed",
            got=list(x.shape),
        )
