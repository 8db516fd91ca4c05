"""Classes by their text and a few labelled images, without training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import InputError, ShapeError

_HERE = "retrieval_fewshot_scores"


@torch.no_grad()
def retrieval_fewshot_scores(
    student_image: Tensor, text: Tensor, support: Tensor, alpha: float = 1.0, beta: float = 5.5
) -> Tensor:
    """Score classes by cosine with their text plus closeness to a few images of each.

    For a student in the image space of a vision-language teacher (``vlm_ood_losses``) that meets new classes with a
    handful of images each: nothing is trained. With many images per class a fine-tuned student is better.

    Args:
        student_image: Student features of the images to name, ``(N, D)``.
        text: Teacher text features of the new classes, ``(C, D)``.
        support: Teacher features of m labelled images of each class, augmented ones counted, ``(C, m, D)``.
        alpha: Weight of the images beside the text.
        beta: Sharpness of closeness, exp(-beta (1 - cos)).

    Returns:
        ``(N, C)``, without unit; the class is the argmax. Features are normalised to length 1 inside. No gradient.

    Raises:
        InputError: alpha below 0 or beta not above 0; features not floating point.
        ShapeError: widths or classes differ, or an axis is empty.

    Source:
        Retrieval of Li et al., ICCV 2023 (arXiv 2307.03135), after Tip-Adapter (Zhang et al., ECCV 2022); no
        temperature.

    Example:
        >>> import torch
        >>> image, text = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, -1.0]])
        >>> retrieval_fewshot_scores(image, text, torch.eye(2).unsqueeze(1)).round(decimals=4)
        tensor([[1.7071, 0.7112]])
    """
    if not (alpha >= 0 and 0 < beta < float("inf")):
        raise InputError("alpha or beta do not fit", where=_HERE, expected="alpha >= 0, beta > 0", got=(alpha, beta))
    given = {"student_image": student_image, "text": text, "support": support}
    for name, x in given.items():
        if not x.is_floating_point():
            raise InputError(f"{name} is not floating point", where=_HERE, got=x.dtype)
    fits = student_image.ndim == text.ndim == 2 and support.ndim == 3 and all(x.numel() for x in given.values())
    widths = {x.shape[-1] for x in given.values() if x.ndim}
    if not fits or len(widths) != 1 or support.shape[0] != text.shape[0]:
        raise ShapeError(
            "features do not fit",
            where=_HERE,
            expected="student_image (N, D), text (C, D), support (C, m, D)",
            got=", ".join(f"{name} {list(x.shape)}" for name, x in given.items()),
        )
    dtype = torch.float32
    for x in given.values():
        dtype = torch.promote_types(dtype, x.dtype)
    images, texts, shots = (F.normalize(x.to(dtype), dim=-1) for x in given.values())
    closeness = torch.exp(-beta * (1 - torch.einsum("nd,cmd->ncm", images, shots))).sum(-1)
    return images @ texts.T + alpha * closeness
