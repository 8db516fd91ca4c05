"""Swapped prediction: every view of a sample predicts the pseudo-label that another view was given."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import check_positive, full_pair


def swapped_prediction_loss(logits: Tensor, targets: Tensor, *, num_large_crops: int, temperature: float) -> Tensor:
    """Cross-entropy of each view's prediction with the targets of every other large view, for each head.

    Targets come from large crops only; small crops predict, they are not asked. Labelled rows have their class as the
    target of every view, unlabelled ones what ``sinkhorn_knopp`` says. It asks for clusters that no augmentation
    changes: useless where two views of a sample are the same, or where augmentation changes the class.

    The rows are not coupled here, only by what made their targets. The mean over rows is taken for each head by itself,
    because the heads must be told apart: the one with the smallest value is the one to use.

    Args:
        logits: Predictions of V views by H heads, ``(V, H, B, C)``; the first ``num_large_crops`` views are the large.
        targets: Distributions over the classes, ``(V_large, H, B, C)``; no gradient flows into them. An entry 0 costs
            nothing, even where the logit is -inf.
        num_large_crops: V_large, 1 to V.
        temperature: Logits are divided by it; 0.1 for cosines.

    Returns:
        Nats, ``(H,)``; zeros with a graph for B = 0.

    Raises:
        InputError: temperature not above 0; logits or targets not floating point.
        ShapeError: fewer than two views, more large crops than views, shapes that do not fit.

    Source:
        "Class-relation Knowledge Distillation for Novel Class Discovery", ICCV 2023, arXiv 2307.09158: 1 / (V_large ·
        (V - 1)) of the sum over ordered pairs of views.

    Example:
        >>> import torch
        >>> logits, targets = torch.zeros(2, 1, 3, 4), torch.full((2, 1, 3, 4), 0.25)
        >>> round(swapped_prediction_loss(logits, targets, num_large_crops=2, temperature=0.1).item(), 6)
        1.386294
    """
    where = "swapped_prediction_loss"
    check_positive(temperature, where, "temperature")
    if logits.ndim != 4:
        raise ShapeError("wrong logits", where=where, expected="(V, H, B, C)", got=list(logits.shape))
    V, H, B, _ = logits.shape
    if V < 2:
        raise ShapeError("no other view to predict from", where=where, expected="V >= 2", got=V)
    if isinstance(num_large_crops, bool) or not isinstance(num_large_crops, int):
        raise InputError("num_large_crops is no number", where=where, expected=f"1 to {V}", got=num_large_crops)
    if not 1 <= num_large_crops <= V:
        raise ShapeError("num_large_crops does not fit", where=where, expected=f"1 to V = {V}", got=num_large_crops)
    if targets.shape != (num_large_crops, *logits.shape[1:]):
        raise ShapeError(
            "targets do not fit",
            where=where,
            expected=f"(V_large, H, B, C) = {[num_large_crops, *logits.shape[1:]]}",
            got=list(targets.shape),
        )
    logits, targets = full_pair(logits, targets, where)
    log_q = F.log_softmax(logits / temperature, -1)
    total = log_q.new_zeros(H, B)
    for view in range(num_large_crops):
        others = [v for v in range(V) if v != view]
        free = log_q[others].masked_fill(targets[view] == 0, 0)  # (V - 1, H, B, C)
        total = total - (targets[view] * free).sum((0, -1))
    return total.sum(1) / (num_large_crops * (V - 1) * max(1, B))
