"""An image and its restyled version find each other in a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import check_positive, without_autocast

_HERE = "instance_alignment"


def instance_alignment(z: Tensor, z_perturbed: Tensor, *, temperature: float = 0.5) -> Tensor:
    """Cross-entropy of telling, by cosine, which restyled image belongs to which image, both ways.

    Makes features insensitive to whatever the restyling changes (``mix_distribution``), while the other images of the
    batch keep them from collapsing. It couples the rows of a batch: under gradient accumulation and on several ranks
    negatives are those of the micro-batch, so it has no sum over rows. Small batches have few negatives.

    Args:
        z: Features of the images, ``(n, d)`` with n >= 2. Gradient flows into both sides: no side is a teacher.
        z_perturbed: Features of their restyled versions, ``(n, d)``.
        temperature: The cosines are divided by it.

    Returns:
        Nats, a scalar; mean over rows and both directions.

    Raises:
        InputError: temperature not above 0; features not floating point.
        ShapeError: shapes differ or are not ``(n, d)``; n < 2, where there is no negative and the value always 0.

    Source:
        Instance alignment of Tang et al., "Distribution Shift Matters for Knowledge Distillation with Webly Collected
        Images", ICCV 2023 (arXiv 2307.11469); the formula, not available to us, is the symmetric InfoNCE.

    Example:
        >>> import torch
        >>> round(instance_alignment(torch.eye(2), torch.eye(2)).item(), 6)
        0.126928
    """
    check_positive(temperature, _HERE, "temperature")
    for x in (z, z_perturbed):
        if not x.is_floating_point():
            raise InputError("features are not floating point", where=_HERE, got=x.dtype)
    if z.ndim != 2 or z.shape != z_perturbed.shape:
        raise ShapeError(
            "features do not fit",
            where=_HERE,
            expected="two tensors (n, d)",
            got=f"{list(z.shape)} and {list(z_perturbed.shape)}",
        )
    n = z.shape[0]
    if n < 2:
        raise ShapeError("there is no other image to tell apart", where=_HERE, expected="n >= 2", got=f"n = {n}")
    dtype = torch.promote_types(torch.promote_types(z.dtype, z_perturbed.dtype), torch.float32)
    with without_autocast(z):
        scores = F.normalize(z.to(dtype), dim=1) @ F.normalize(z_perturbed.to(dtype), dim=1).T / temperature
    own = torch.arange(n, device=z.device)
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
