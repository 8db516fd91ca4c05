"""Which tokens say nothing that the others do not say too."""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.errors import InputError, ShapeError

_HERE = "redundant_token_mask"
_EPS = 1e-12


def redundant_token_mask(tokens: Tensor, n_keep: int, protected: int = 0) -> tuple[Tensor, Tensor]:
    """Score every token by its mean cosine with the others, and keep the least redundant.

    For a student that is to be cheaper and to look at what differs: call it before a few of its layers, each time on
    the tokens still there, and gather ``keep_ids``. The choice itself has no gradient. Not for tasks that need an
    output at every place in training, such as reconstruction.

    Args:
        tokens: Features, ``(B, n, D)``.
        n_keep: How many tokens stay, the protected among them.
        protected: The first so many tokens (a class token) are always kept, neither scored nor compared with.

    Returns:
        ``(score, keep_ids)``: mean cosines in [-1, 1], ``(B, n - protected)``; and the places of the kept tokens,
        rising, ``(B, n_keep)``. Of tokens equally redundant the earlier are kept. Both without gradient.

    Raises:
        InputError: n_keep above n, or not above ``protected``; ``protected`` below 0.
        ShapeError: not three axes; fewer than two tokens to compare.

    Source:
        After the token masking of Shi et al., "Hybrid Distillation", ICLR 2024 (arXiv 2306.15876); the score is our
        reconstruction. Sum over j of cos(i, j) = u_i · sum of u_j, so the cost is n D, not n² D.

    Example:
        >>> import torch
        >>> score, kept = redundant_token_mask(torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]]), n_keep=2)
        >>> score.tolist(), kept.tolist()
        ([[0.5, 0.5, 0.0]], [[0, 2]])
    """
    if tokens.ndim != 3:
        raise ShapeError("no tokens", where=_HERE, expected="(B, n, D)", got=list(tokens.shape))
    B, n, _ = tokens.shape
    if protected < 0:
        raise InputError("protected does not fit", where=_HERE, expected="0 or more", got=protected)
    if not protected < n_keep <= n:
        raise InputError(
            "n_keep does not fit",
            where=_HERE,
            expected=f"{protected + 1} to {n} ({n} tokens, {protected} of them protected)",
            got=n_keep,
        )
    m = n - protected
    if m < 2:
        raise ShapeError("too few tokens to compare", where=_HERE, expected="two or more that are not protected", got=m)
    free = tokens.detach()[:, protected:]
    free = free.to(torch.promote_types(free.dtype, torch.float32))
    units = free / torch.linalg.vector_norm(free, dim=-1, keepdim=True).clamp_min(_EPS)
    total = units.sum(1, keepdim=True)
    score = ((units * total).sum(-1) - units.square().sum(-1)) / (m - 1)
    chosen = score.argsort(dim=1, stable=True)[:, : n_keep - protected].sort(dim=1).values + protected
    always = torch.arange(protected, device=tokens.device).expand(B, -1)
    return score, torch.cat([always, chosen], dim=1)
