"""Attention maps over one patch grid, made comparable with maps over another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._attention import divided_by_sum

Grid = tuple[int, int]


def resize_attention(attn: Tensor, size: tuple[int, int], *, grid: Grid, to: Grid) -> Tensor:
    """Bring attention maps of one picture resolution or patch size to another, rows still summing to 1.

    For a teacher and a student that cut the picture into different numbers of patches; usually the teacher's maps are
    resized. Keys are patches of the grid, behind any number of extra tokens (CLS, registers). Queries are too where
    their number changes, or where queries and keys are the same tokens (Q = K before and after); otherwise, as in
    cross-attention from text, they stay as they are.

    Args:
        attn: Attention probabilities, ``(B, H, Q, K)``.
        size: (Q', K') of the result.
        grid: Height and width of the patch grid of ``attn``.
        to: Height and width of the grid of the result.

    Returns:
        ``(B, H, Q', K')``, float32 or float64, with a gradient if ``attn`` has one.

    Raises:
        InputError: not floating point.
        ShapeError: not four axes; a grid without cells; Q, K, Q' or K' do not fit the grids.

    Source:
        Ours; the paper of AMAD compares maps of one size. Bilinear between the centres of the cells, first over keys,
        then over queries; rows and columns of extra tokens are copied, then each row is divided by its sum. A finer
        grid has more cells of the same height, so extra tokens lose part of their share, with a coarser grid they gain.

    Example:
        >>> import torch
        >>> attn = torch.tensor([[[[0.5, 0.3, 0.2]]]])  # one text token looks at CLS and two patches
        >>> [round(p, 6) for p in resize_attention(attn, (1, 2), grid=(1, 2), to=(1, 1)).flatten().tolist()]
        [0.666667, 0.333333]
    """
    where = "resize_attention"
    if not attn.is_floating_point():
        raise InputError("map is not floating point", where=where, got=attn.dtype)
    if attn.ndim != 4:
        raise ShapeError("attention maps need four axes", where=where, expected="(B, H, Q, K)", got=list(attn.shape))
    for name, cells in (("grid", grid), ("to", to)):
        if len(cells) != 2 or min(cells) < 1:
            raise ShapeError(f"{name} has no cells", where=where, expected="(height, width), each >= 1", got=cells)
    Q, K = attn.shape[2:]
    Q_to, K_to = size
    extra = _extra(K, K_to, grid, to, "keys")
    attn = attn.to(torch.promote_types(attn.dtype, torch.float32))
    out = _resized(attn, extra, grid, to)
    if Q_to != Q or (Q == K and Q_to == K_to):
        extra = _extra(Q, Q_to, grid, to, "queries")
        out = _resized(out.transpose(-1, -2), extra, grid, to).transpose(-1, -2)
    return divided_by_sum(out)


def _extra(before: int, after: int, grid: Grid, to: Grid, what: str) -> int:
    """Return how many tokens stand before the patches."""
    extra = before - grid[0] * grid[1]
    if extra < 0 or after - to[0] * to[1] != extra:
        raise ShapeError(
            f"the {what} do not fit the grids",
            where="resize_attention",
            expected=f"{grid[0] * grid[1]} before and {to[0] * to[1]} after, plus as many extra tokens in both",
            got=f"{before} before, {after} after",
        )
    return extra


def _resized(x: Tensor, extra: int, grid: Grid, to: Grid) -> Tensor:
    """Interpolate the last axis of ``(B, H, Q, K)`` behind ``extra`` tokens."""
    B, H, Q, _ = x.shape
    cells = x[..., extra:].reshape(B, H * Q, *grid)
    cells = F.interpolate(cells, size=tuple(to), mode="bilinear", align_corners=False).reshape(B, H, Q, -1)
    return torch.cat([x[..., :extra], cells], dim=-1)
