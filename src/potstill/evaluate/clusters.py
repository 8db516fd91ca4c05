"""How well clusters without names agree with true classes: the best one-to-one matching of both."""

from __future__ import annotations

from typing import Any

import numpy as np

from potstill.errors import InputError, ShapeError


def cluster_accuracy(y_true: Any, y_pred: Any) -> float:
    """Return the share of samples in the right cluster, under the one-to-one matching that makes it largest.

    For clusters, whose numbers mean nothing. It favours whoever has many clusters and few samples, because the matching
    is chosen on the same samples; to score a matching on other data, use ``match_clusters`` on the first.

    Args:
        y_true: Classes of n samples: whole numbers, as a tensor, array or sequence ``(n,)``, n >= 1.
        y_pred: Their clusters, likewise; there may be more or fewer clusters than classes, and those that are not
            matched count as wrong.

    Returns:
        0 to 1.

    Raises:
        InputError: no sample, or entries that are no whole numbers.
        ShapeError: not one axis, or lengths that differ.

    Example:
        >>> cluster_accuracy([0, 0, 1, 1], [7, 7, 3, 7])
        0.75
    """
    matching = match_clusters(y_true, y_pred)
    true, predicted = _checked(y_true, y_pred)
    named = np.array([matching.get(int(cluster), -1) for cluster in predicted])
    known = np.array([int(cluster) in matching for cluster in predicted])
    return float((known & (named == true)).mean())


def match_clusters(y_true: Any, y_pred: Any) -> dict[int, int]:
    """Return cluster -> class for the matching of ``cluster_accuracy``; clusters that are left over are missing.

    Raises:
        InputError, ShapeError: as ``cluster_accuracy``.

    Example:
        >>> match_clusters([0, 0, 1, 1], [7, 7, 3, 7])
        {3: 1, 7: 0}
    """
    true, predicted = _checked(y_true, y_pred)
    classes, rows = np.unique(true, return_inverse=True)
    clusters, columns = np.unique(predicted, return_inverse=True)
    shared = np.zeros((len(clusters), len(classes)), np.int64)
    np.add.at(shared, (columns, rows), 1)
    pairs = cheapest_matching(-shared.astype(np.float64))
    return {int(clusters[i]): int(classes[j]) for i, j in pairs}


def cheapest_matching(costs: np.ndarray) -> list[tuple[int, int]]:
    """Return pairs (row, column) of least total cost: every row or every column, whichever are fewer, has one.

    The Hungarian method with shortest augmenting paths, O(rows² · columns). It is our own, because scipy is not among
    what Potstill needs and these tables have one row a class.

    Args:
        costs: Finite numbers, ``(R, C)``.

    Returns:
        min(R, C) pairs, by row.

    Raises:
        InputError: NaN or Inf.
        ShapeError: not two axes, or an empty one.
    """
    costs = np.asarray(costs, np.float64)
    if costs.ndim != 2 or costs.size == 0:
        raise ShapeError("no table of costs", where="cheapest_matching", expected="(R, C)", got=list(costs.shape))
    if not np.isfinite(costs).all():
        raise InputError("costs are not finite", where="cheapest_matching")
    if costs.shape[0] > costs.shape[1]:
        return sorted((row, column) for column, row in cheapest_matching(costs.T))
    R, C = costs.shape
    # Column 0 and row 0 stand for "none". Prices keep every cost of an edge in use at 0 and of the others above.
    row_price, column_price = np.zeros(R + 1), np.zeros(C + 1)
    owner = np.zeros(C + 1, np.int64)  # column -> its row
    for row in range(1, R + 1):
        owner[0], here = row, 0
        distance, came_from = np.full(C + 1, np.inf), np.zeros(C + 1, np.int64)
        is_done = np.zeros(C + 1, bool)
        while owner[here]:
            is_done[here] = True
            step = costs[owner[here] - 1] - row_price[owner[here]] - column_price[1:]
            is_nearer = ~is_done[1:] & (step < distance[1:])
            distance[1:][is_nearer], came_from[1:][is_nearer] = step[is_nearer], here
            here = 1 + int(np.where(is_done[1:], np.inf, distance[1:]).argmin())
            nearest = distance[here]
            row_price[owner[is_done]] += nearest
            column_price[is_done] -= nearest
            distance[~is_done] -= nearest
        while here:
            owner[here], here = owner[came_from[here]], came_from[here]
    return sorted((int(owner[column]) - 1, column - 1) for column in range(1, C + 1) if owner[column])


def _checked(y_true: Any, y_pred: Any) -> tuple[np.ndarray, np.ndarray]:
    pair = []
    for name, values in (("y_true", y_true), ("y_pred", y_pred)):
        values = np.asarray(values.cpu() if hasattr(values, "cpu") else values)
        if values.ndim != 1:
            raise ShapeError("not one axis", where=f"cluster_accuracy: {name}", expected="(n,)", got=values.shape)
        if values.size == 0:
            raise InputError("there is no sample", where=f"cluster_accuracy: {name}", expected="n >= 1")
        if values.dtype.kind not in "iu":
            raise InputError("no class ids", where=f"cluster_accuracy: {name}", expected="integers", got=values.dtype)
        pair.append(values)
    if len(pair[0]) != len(pair[1]):
        raise ShapeError(
            "lengths differ", where="cluster_accuracy", expected=f"{len(pair[0])} clusters", got=len(pair[1])
        )
    return pair[0], pair[1]
