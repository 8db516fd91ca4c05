"""The learned projection of AMAD's variant "projected_kl"."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from potstill.errors import ShapeError
from potstill.losses._common import without_autocast


class AttentionProjection(nn.Module):
    """Map a flattened student map by one trained matrix and ReLU; it is thrown away after training.

    Holds (QK)² + QK numbers, so it is for short, fixed numbers of queries and keys. It starts as the identity, with
    which "projected_kl" equals "kl".

    Args:
        queries: Q of the maps, fixed.
        keys: K of the maps, fixed.

    Raises:
        ShapeError: queries or keys below 1; in ``forward``, maps of another Q or K.

    Source:
        Zhao et al., "No Head Left Behind", AAAI 2024, equations 10 and 11. The identity as a start is ours.

    Example:
        >>> import torch
        >>> maps = torch.tensor([[[[0.75, 0.25]]]])
        >>> AttentionProjection(1, 2)(maps).tolist()
        [[[[0.75, 0.25]]]]
    """

    def __init__(self, queries: int, keys: int):
        super().__init__()
        if queries < 1 or keys < 1:
            raise ShapeError("no such map", where="AttentionProjection", expected="Q, K >= 1", got=[queries, keys])
        self.queries, self.keys = queries, keys
        self.weight = nn.Parameter(torch.eye(queries * keys))
        self.bias = nn.Parameter(torch.zeros(queries * keys))

    def forward(self, maps: Tensor) -> Tensor:
        """Return ``maps (B, H, Q, K)`` projected, not below 0, in at least the precision of the parameters."""
        if maps.shape[-2:] != (self.queries, self.keys):
            raise ShapeError(
                "map does not fit the projection",
                where="AttentionProjection",
                expected=f"(..., {self.queries}, {self.keys})",
                got=list(maps.shape),
                hint="Its matrix is made for one Q and K: pad all batches alike, or use another variant.",
            )
        kind = torch.promote_types(maps.dtype, self.weight.dtype)
        with without_autocast(maps):
            out = nn.functional.linear(maps.flatten(-2).to(kind), self.weight.to(kind), self.bias.to(kind))
        return out.relu().view_as(maps)
