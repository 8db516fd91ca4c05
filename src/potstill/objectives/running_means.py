"""What an objective notes beside its loss: running means, kept in buffers of its part and so in every checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

_SHARE = 0.02


class RunningMeans(nn.Module):
    """Means of a few numbers over the last 50 batches or so.

    Args:
        names: What they are called in the history.
    """

    def __init__(self, names: Sequence[str]):
        super().__init__()
        self.names = list(names)
        self.register_buffer("recent", torch.zeros(len(self.names)))
        self.register_buffer("batches", torch.zeros(()))

    @torch.no_grad()
    def take(self, *values: torch.Tensor) -> None:
        """Take in a number each of one batch."""
        self.recent.lerp_(torch.stack([v.detach().to(self.recent) for v in values]), _SHARE)
        self.batches += 1

    def read(self) -> dict[str, float]:
        """Return the means by name; none before the first batch."""
        batches = self.batches.item()
        if not batches:
            return {}
        return dict(zip(self.names, (self.recent.double() / (1 - (1 - _SHARE) ** batches)).tolist()))
