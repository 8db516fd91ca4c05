"""What TRG compares: a few tokens of every image, on one grid for both models; and how sharply, as training goes on."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import check_positive


def sample_tokens(
    student: Tensor, teacher: Tensor, r: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw r positions of every image, the same in both models, and put the tokens of all images in one list.

    A graph over all tokens of a batch grows with their number squared; a few of each image keep it small. Not needed
    where all tokens together are few hundred.

    Args:
        student: Tokens ``(B, n, D_s)``.
        teacher: Tokens ``(B, n, D_t)`` of the same grid; returned without a gradient.
        r: Tokens an image, without replacement.
        generator: Decides the positions, apart from the global generator; None = the global one. It may be on the CPU
            while tokens are elsewhere, which gives the same draws on every device.

    Returns:
        Student tokens ``(B r, D_s)``, teacher tokens ``(B r, D_t)``, and the positions ``(B, r)``.

    Raises:
        InputError: r below 1 or above n.
        ShapeError: not three axes; B or n differ.

    Source:
        Zhang, Liu and He, "Knowledge Distillation via Token-level Relationship Graph", 2023, arXiv 2306.12442: random
        tokens per image. Equal positions in both models are our reading.

    Example:
        >>> import torch
        >>> tokens = torch.arange(12.0).reshape(2, 3, 2)
        >>> s, t, ids = sample_tokens(tokens, tokens, 2, torch.Generator().manual_seed(0))
        >>> torch.equal(s, t), s.shape, ids.shape
        (True, torch.Size([4, 2]), torch.Size([2, 2]))
    """
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[:2] != teacher.shape[:2]:
        raise ShapeError(
            "tokens do not fit",
            where="sample_tokens",
            expected="student (B, n, D_s) and teacher (B, n, D_t)",
            got=f"student {list(student.shape)}, teacher {list(teacher.shape)}",
            hint="Bring the finer grid to the coarser one with feature_map_to_tokens.",
        )
    B, n = student.shape[:2]
    if isinstance(r, bool) or not isinstance(r, int) or not 1 <= r <= n:
        raise InputError("r does not fit", where="sample_tokens", expected=f"1 to {n} tokens an image", got=r)
    device = generator.device if generator is not None else student.device
    ids = torch.rand(B, n, generator=generator, device=device).argsort(1)[:, :r].to(student.device)

    def taken(tokens: Tensor) -> Tensor:
        return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])).flatten(0, 1)

    return taken(student), taken(teacher.detach()), ids


def feature_map_to_tokens(features: Tensor, grid: int) -> Tensor:
    """Average a feature map over a grid of patches and list the patches in reading order.

    Makes tokens of a convolutional network's last map, and brings the finer of two grids to the coarser.

    Args:
        features: ``(B, C, H, W)``.
        grid: g, rows and columns of the grid; patches differ by one pixel in size if g divides neither.

    Returns:
        Tokens ``(B, g², C)``.

    Raises:
        InputError: grid below 1.
        ShapeError: not four axes; the map has fewer than g rows or columns.

    Source:
        Zhang, Liu and He, 2023, arXiv 2306.12442: patches of fixed size; the averaging is our reading.

    Example:
        >>> import torch
        >>> feature_map_to_tokens(torch.arange(16.0).reshape(1, 1, 4, 4), 2).flatten().tolist()
        [2.5, 4.5, 10.5, 12.5]
    """
    where = "feature_map_to_tokens"
    if isinstance(grid, bool) or not isinstance(grid, int) or grid < 1:
        raise InputError("grid does not fit", where=where, expected="a whole number from 1 on", got=grid)
    if features.ndim != 4 or min(features.shape[2:]) < grid:
        raise ShapeError(
            "feature map does not fit",
            where=where,
            expected=f"(B, C, H, W) with H, W >= {grid}",
            got=list(features.shape),
        )
    return F.adaptive_avg_pool2d(features, grid).flatten(2).transpose(1, 2)


def trg_temperature(progress: float, tau_start: float = 0.5, tau_end: float = 0.07) -> float:
    """Lower the temperature of ``trg_global_loss`` along half a cosine: coarse structure first, then fine.

    Args:
        progress: Share of training that is done, 0 to 1.
        tau_start: Temperature at 0.
        tau_end: Temperature at 1.

    Returns:
        The temperature now, without unit.

    Raises:
        InputError: progress outside [0, 1]; a temperature not above 0.

    Source:
        Zhang, Liu and He, 2023, arXiv 2306.12442: high, then lower. The cosine and both ends are ours.

    Example:
        >>> round(trg_temperature(0.5), 3)
        0.285
    """
    where = "trg_temperature"
    check_positive(tau_start, where, "tau_start")
    check_positive(tau_end, where, "tau_end")
    if not 0 <= progress <= 1:
        raise InputError("progress does not fit", where=where, expected="a number in [0, 1]", got=progress)
    return tau_end + (tau_start - tau_end) * (1 + math.cos(math.pi * progress)) / 2
