"""Image-text retrieval with the contrastive embeddings of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from potstill.errors import ShapeError


def recall(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, texts: Sequence[Any] | None = None, *, k: int = 1
) -> tuple[float, float]:
    """Return recall at k from image to text and from text to image.

    Args:
        image_embeds: ``[N, E]``; row i belongs to row i of the texts.
        text_embeds: ``[N, E]``.
        texts: The texts themselves; rows with equal text count as the same item, because nothing could tell them
            apart. None = all differ.
        k: How many of the best N are looked at.

    Returns:
        Shares of images whose text is found, and of texts whose image is found.
    """
    if image_embeds.shape != text_embeds.shape or image_embeds.ndim != 2:
        raise ShapeError(
            "embeddings do not pair up",
            where="recall",
            expected="two tensors (N, E)",
            got=f"{tuple(image_embeds.shape)} and {tuple(text_embeds.shape)}",
        )
    similarity = image_embeds.float() @ text_embeds.float().T
    n = len(similarity)
    numbers = {text: i for i, text in reversed(list(enumerate(texts)))} if texts is not None else {}
    group = torch.tensor([numbers[t] for t in texts] if texts is not None else range(n), device=similarity.device)
    is_pair = group[:, None] == group
    found = []
    for scores, pairs in ((similarity, is_pair), (similarity.T, is_pair.T)):
        best = scores.topk(min(k, n), dim=1).indices
        found.append(float(pairs.gather(1, best).any(1).float().mean()))
    return found[0], found[1]


def retrieval_scores(image_embeds: torch.Tensor, text_embeds: torch.Tensor, texts: Sequence[Any]) -> dict[str, Any]:
    """Return recall@1 and recall@5, the mean of both directions and each direction, over one gallery of N pairs."""
    scores: dict[str, Any] = {"samples": len(image_embeds), "image_to_text": {}, "text_to_image": {}}
    for k in (1, 5):
        to_text, to_image = recall(image_embeds, text_embeds, texts, k=k)
        name = f"recall@{k}"
        scores["image_to_text"][name], scores["text_to_image"][name] = to_text, to_image
        scores[name] = (to_text + to_image) / 2
    return scores
