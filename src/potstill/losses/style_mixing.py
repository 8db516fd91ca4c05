"""Images in another image's style: per-channel statistics of two images, mixed."""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import check_positive

_HERE = "mix_distribution"


def mix_distribution(x: Tensor, perm: Tensor, lam: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Give every image channel means and deviations between its own and those of another image of the batch.

    What is shown stays, how it is drawn (contrast, tint, brightness) moves: a student that must answer alike on both
    learns to look past the style of pictures collected from the web. It knows no other shift: geometry, blur and
    texture stay.

    Args:
        x: Normalised images or early feature maps, ``(n, C, H, W)``.
        perm: Whose statistics each image is mixed with, a permutation of 0 ... n - 1, integers ``(n,)``.
        lam: Share of an image's own statistics, in [0, 1], ``(n,)``; drawn from Beta(0.1, 0.1), mostly near 0 or 1.
        eps: Added to the variance, which is that of the population.

    Returns:
        ``(n, C, H, W)``, in the type of ``x``. Statistics carry no gradient, the picture does.

    Raises:
        InputError: ``perm`` is no permutation; ``lam`` outside [0, 1]; ``x`` not floating point; eps not above 0.
        ShapeError: not four axes; ``perm`` or ``lam`` are not ``(n,)``; nothing in the batch.

    Source:
        MixDistribution of Tang et al., "Distribution Shift Matters for Knowledge Distillation with Webly Collected
        Images", ICCV 2023 (arXiv 2307.11469); the formula, not available to us, is that of MixStyle (Zhou et al.,
        ICLR 2021).

    Example:
        >>> import torch
        >>> x = torch.tensor([[[[0.0, 2.0]]], [[[5.0, 5.0]]]])
        >>> mix_distribution(x, torch.tensor([1, 0]), torch.tensor([0.5, 1.0])).round(decimals=2)[0, 0, 0]
        tensor([2.5000, 3.5000])
    """
    check_positive(eps, _HERE, "eps")
    if x.ndim != 4 or x.shape[0] == 0:
        raise ShapeError("no images", where=_HERE, expected="(n, C, H, W) with n >= 1", got=list(x.shape))
    if not x.is_floating_point():
        raise InputError("images are not floating point", where=_HERE, got=x.dtype)
    n = x.shape[0]
    for name, given in (("perm", perm), ("lam", lam)):
        if list(given.shape) != [n]:
            raise ShapeError(f"{name} does not fit", where=_HERE, expected=f"[{n}]", got=list(given.shape))
    numbers = torch.arange(n, device=perm.device)
    if perm.is_floating_point() or perm.dtype == torch.bool or not torch.equal(perm.sort().values.long(), numbers):
        raise InputError("perm is no permutation", where=_HERE, expected=f"each of 0 to {n - 1} once", got=perm)
    if not ((lam >= 0) & (lam <= 1)).all():
        raise InputError("lam does not fit", where=_HERE, expected="numbers in [0, 1]", got=lam)
    full = x.to(torch.promote_types(x.dtype, torch.float32))
    still = full.detach()
    mean = still.mean((2, 3), keepdim=True)
    deviation = (still.var((2, 3), unbiased=False, keepdim=True) + eps).sqrt()
    share = lam.detach().to(full).view(n, 1, 1, 1)
    perm = perm.to(x.device).long()
    new_mean = share * mean + (1 - share) * mean[perm]
    new_deviation = share * deviation + (1 - share) * deviation[perm]
    return (new_deviation * ((full - mean) / deviation) + new_mean).to(x.dtype)
