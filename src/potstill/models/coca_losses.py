"""Losses of CoCa: cross entropy that is safe without labels, and the contrastive loss among some rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy in fp32, mean over rows whose label is not -100; 0, with a gradient of 0, if there is none."""
    total = F.cross_entropy(logits.float(), labels, ignore_index=-100, reduction="sum")
    return total / (labels != -100).sum().clamp(min=1)


def info_nce(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, rows: Tensor) -> Tensor:
    """Symmetric contrastive loss among the rows where ``rows`` is True.

    The others are neither anchors nor negatives. With one row the loss is 0, with none too.

    Args:
        image_embeds: ``[B, E]``, length 1.
        text_embeds: ``[B, E]``, length 1.
        logit_scale: Inverse temperature.
        rows: True = counts, ``[B]``.
    """
    scores = logit_scale * image_embeds @ text_embeds.T  # [B, B]
    labels = torch.arange(len(rows), device=rows.device).masked_fill(~rows, -100)
    terms = [mean_cross_entropy(x.masked_fill(~rows, torch.finfo(x.dtype).min), labels) for x in (scores, scores.T)]
    return (terms[0] + terms[1]) / 2
