"""What losses on chunks of tokens share: whose chunk a token is, sums over chunks, their last tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.errors import InputError, ShapeError


def chunk_ids(chunks: Tensor, tokens: Tensor, where: str, side: str) -> tuple[Tensor, int | None]:
    """Return the chunk of every token, ``[B, L]``, -1 = none, and C if the chunks are given as a mask.

    Args:
        chunks: Bool ``[B, L, C]`` or integers ``[B, L]``.
        tokens: Anything whose first axes are ``[B, L]``.
        where: The loss, for messages.
        side: "student" or "teacher", for messages.
    """
    is_mask = chunks.ndim == 3
    if chunks.ndim not in (2, 3) or chunks.shape[:2] != tokens.shape[:2]:
        raise ShapeError(
            f"the {side}'s chunks do not fit its tokens",
            where=where,
            expected=f"{[*tokens.shape[:2], 'C']}, or {list(tokens.shape[:2])} with numbers",
            got=list(chunks.shape),
        )
    if chunks.is_floating_point() or is_mask != (chunks.dtype == torch.bool):
        raise InputError(
            f"the {side}'s chunks are of the wrong type",
            where=where,
            expected="bool [B, L, C] or integers [B, L]",
            got=f"{chunks.dtype} {list(chunks.shape)}",
        )
    if not is_mask:
        return chunks.long().clamp_min(-1), None
    if bool((chunks.sum(-1) > 1).any()):
        raise InputError(f"a token of the {side} is in two chunks", where=where, expected="each token in at most one")
    if chunks.shape[-1] == 0:
        return torch.full(chunks.shape[:2], -1, device=chunks.device), 0
    return chunks.long().argmax(-1).masked_fill(~chunks.any(-1), -1), chunks.shape[-1]


def members(chunks: Tensor, mask: Tensor, where: str, side: str) -> Tensor:
    """Return which tokens are in a chunk and count, ``[B, L]``."""
    if mask.dtype != torch.bool or mask.shape != chunks.shape:
        raise InputError(
            f"the {side}'s loss mask does not fit",
            where=where,
            expected=f"bool {list(chunks.shape)}, True = counts",
            got=f"{mask.dtype} {list(mask.shape)}",
        )
    return mask & (chunks >= 0)


def chunk_sums(values: Tensor, chunks: Tensor, C: int) -> Tensor:
    """Return the sums of ``values [..., L]`` over each chunk, ``[..., C]``; chunk C takes what belongs to none."""
    return values.new_zeros(*values.shape[:-1], C + 1).scatter_add(-1, chunks, values)[..., :C]


def last_in_chunk(inside: Tensor, chunks: Tensor, C: int) -> Tensor:
    """Return the position of the last token of each chunk, ``[B, C]``, -1 where it has none."""
    position = torch.arange(inside.shape[1], device=inside.device).expand_as(chunks)
    found = torch.full((len(inside), C + 1), -1, device=inside.device)
    return found.scatter_reduce(1, chunks.masked_fill(~inside, C), position, "amax")[:, :C]
