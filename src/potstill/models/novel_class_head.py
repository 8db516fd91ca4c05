"""A head for known and new classes: one cosine classifier, and several that look for clusters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.errors import ShapeError

__all__ = ["NovelClassHead"]


class NovelClassHead(nn.Module):
    """Cosine logits of K known classes, shared, and of U new ones, from several heads that each look for clusters.

    ``known`` is a matrix of prototypes on normalised features. Each new head maps the features by an MLP, normalises
    them and compares them with U prototypes. Several heads, because a clustering may go wrong by chance: the one with
    the smallest loss is used in the end. Call ``normalize_prototypes`` before every step; the logits are cosines only
    then. All logits are to be divided by a temperature (0.1) before a softmax.

    The batch norm in the MLP couples the rows that come together: all views of a micro-batch, of one rank.

    Args:
        dim: D, width of the features.
        num_known: K, at least 1.
        num_novel: U, at least 1.
        num_heads: H, at least 1: 4 for a network trained from scratch, 2 for a good encoder.
        hidden: Width inside the MLP.
        out: Width in which clusters are looked for.

    Raises:
        ShapeError: a number below 1; in ``forward``, features that are not ``(..., B, D)``.

    Source:
        "Class-relation Knowledge Distillation for Novel Class Discovery", ICCV 2023, arXiv 2307.09158, where rows are
        normalised over one view at a time; here over all views that are passed at once.

    Example:
        >>> import torch
        >>> NovelClassHead(8, num_known=3, num_novel=2, num_heads=4)(torch.randn(2, 5, 8)).shape
        torch.Size([2, 4, 5, 5])
    """

    def __init__(self, dim: int, num_known: int, num_novel: int, num_heads: int, *, hidden: int = 2048, out: int = 256):
        super().__init__()
        sizes = {"dim": dim, "num_known": num_known, "num_novel": num_novel, "num_heads": num_heads}
        for name, size in {**sizes, "hidden": hidden, "out": out}.items():
            if size < 1:
                raise ShapeError(f"{name} does not fit", where="NovelClassHead", expected="1 or more", got=size)
        self.dim, self.num_known, self.num_novel, self.num_heads = dim, num_known, num_novel, num_heads
        self.known = nn.Linear(dim, num_known, bias=False)
        self.projectors = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out))
            for _ in range(num_heads)
        )
        self.novel = nn.ModuleList(nn.Linear(out, num_novel, bias=False) for _ in range(num_heads))
        self.normalize_prototypes()

    @torch.no_grad()
    def normalize_prototypes(self) -> None:
        """Give every prototype length 1, in place."""
        for prototypes in (self.known, *self.novel):
            prototypes.weight.copy_(F.normalize(prototypes.weight, dim=-1))

    def known_logits(self, features: Tensor) -> Tensor:
        """Return the logits of the known classes, ``(..., B, K)``, for features ``(..., B, D)``."""
        return self.known(F.normalize(self._checked(features), dim=-1))

    def novel_logits(self, features: Tensor) -> Tensor:
        """Return the logits of the new classes by every head, ``(..., H, B, U)``, for features ``(..., B, D)``."""
        rows = self._checked(features).flatten(0, -2)
        logits = [novel(F.normalize(project(rows), dim=-1)) for project, novel in zip(self.projectors, self.novel)]
        return torch.stack([x.unflatten(0, features.shape[:-1]) for x in logits], -3)

    def join(self, known: Tensor, novel: Tensor) -> Tensor:
        """Return ``(..., H, B, K + U)`` for known logits ``(..., B, K)`` and new ones ``(..., H, B, U)``."""
        return torch.cat([known.unsqueeze(-3).expand(*novel.shape[:-1], self.num_known), novel], -1)

    def forward(self, features: Tensor) -> Tensor:
        """Return all logits, ``(..., H, B, K + U)``, known classes first, for features ``(..., B, D)``."""
        return self.join(self.known_logits(features), self.novel_logits(features))

    def _checked(self, features: Tensor) -> Tensor:
        if features.ndim < 2 or features.shape[-1] != self.dim:
            raise ShapeError(
                "features do not fit the head",
                where="NovelClassHead",
                expected=f"(..., B, {self.dim})",
                got=list(features.shape),
            )
        return features
