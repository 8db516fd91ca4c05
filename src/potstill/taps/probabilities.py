"""Attention probabilities from queries and keys, as any attention function computes them inside."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_probs(
    query: Tensor,
    key: Tensor,
    scaling: float,
    position_bias: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Placeholder of the same contract until the part that owns it is merged."""
    if key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    with torch.autocast(query.device.type, enabled=False):
        scores = query.float() @ key.float().transpose(-1, -2) * scaling
    if position_bias is not None:
        scores = scores + position_bias.float()
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + attention_mask.float()
    return scores.softmax(-1)
