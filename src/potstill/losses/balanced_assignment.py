"""Sinkhorn-Knopp: soft pseudo-labels under which every cluster is used equally."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import check_positive


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, *, num_iters: int = 3, epsilon: float = 0.05) -> Tensor:
    """Assign rows to clusters, softly and in balance: pseudo-labels for ``swapped_prediction_loss``.

    Scales exp(logits / epsilon) in turn so that each cluster holds N / U rows and each row has mass 1; the rows come
    last, so they sum to 1 exactly and the clusters almost. Without the balance all rows may end in one cluster. Not for
    clusters known to be of very unequal size, nor for fewer rows than clusters: then the balance means little, and a
    warning says so.

    Rows influence each other. Under several ranks every rank balances its own rows unless they are gathered first;
    under accumulation every micro-batch its own.

    Args:
        logits: Similarity of N rows to U clusters, ``(N, U)``; cosines as a rule.
        num_iters: How often both are scaled, at least 1.
        epsilon: Sharpness: smaller is closer to one cluster a row.

    Returns:
        Assignments ``(N, U)`` in at least float32, without a graph; every row sums to 1. Empty for N = 0.

    Raises:
        InputError: NaN or Inf among the logits, epsilon not above 0, num_iters below 1, logits not floating point.
        ShapeError: not two axes, or no cluster.

    Source:
        Cuturi, "Sinkhorn Distances", 2013, as "Class-relation Knowledge Distillation for Novel Class Discovery", ICCV
        2023, uses it. Done with logarithms, so that no row vanishes however small epsilon is; the result is the same.

    Example:
        >>> import torch
        >>> sinkhorn_knopp(torch.zeros(4, 2)).tolist()
        [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]
    """
    where = "sinkhorn_knopp"
    check_positive(epsilon, where, "epsilon")
    if isinstance(num_iters, bool) or not isinstance(num_iters, int) or num_iters < 1:
        raise InputError("num_iters does not fit", where=where, expected="a whole number, 1 or more", got=num_iters)
    if not logits.is_floating_point():
        raise InputError("logits are not floating point", where=where, got=logits.dtype)
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise ShapeError("wrong logits", where=where, expected="(N, U) with U >= 1", got=list(logits.shape))
    if not torch.isfinite(logits).all():
        raise InputError("logits hold NaN or Inf", where=where, expected="finite numbers")
    N, U = logits.shape
    log_q = logits.to(torch.promote_types(logits.dtype, torch.float32)) / epsilon
    if N == 0:
        return log_q
    if N < U:
        warnings.warn(f"sinkhorn_knopp: {N} rows cannot fill {U} clusters equally; use larger batches.", stacklevel=3)
    for _ in range(num_iters):
        log_q = log_q - log_q.logsumexp(0, keepdim=True) + math.log(N / U)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    return log_q.exp()
