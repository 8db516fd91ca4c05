"""Centred kernel alignment: how alike two representations are, whatever their widths."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from potstill.errors import ShapeError
from potstill.losses._common import (
    check_choice,
    check_mask,
    check_positive,
    full_pair,
    without_autocast,
    zero_with_graph,
)

Kernel = Literal["linear", "rbf"]
_EPS = 1e-12


def cka(
    x: Tensor,
    y: Tensor,
    *,
    kernel: Kernel = "linear",
    sigma: float = 1.0,
    debiased: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """Compare the similarity structure of the same n examples in two feature spaces.

    For showing which layers of student and teacher agree, and for pairing layers of different width without a
    projector. It ignores rotation and scale, not general linear maps. With few examples and wide features plain CKA
    comes out high by chance: use ``debiased``. Features so small that the products of norms near 1e-12 look less alike
    than they are, because of the guard in the denominator.

    Args:
        x: Student features, ``(n, d1)``; further leading axes are counted as examples, ``(..., d1)``.
        y: Teacher features, ``(n, d2)``; no gradient flows into them.
        kernel: "linear", or "rbf" with a width relative to the median squared distance.
        sigma: Width of the rbf kernel in roots of that median.
        debiased: U-centring, which removes the bias of few examples; the value can then be negative.
        mask: True at examples that count, ``(n,)`` or ``(...)``; others are dropped first.

    Returns:
        A scalar without unit: 1 for equal structure, 0 for none; 0 with a graph if there is no example at all.

    Raises:
        InputError: unknown kernel; sigma not above 0; mask not bool.
        ShapeError: numbers of examples differ; a single example (fewer than four if debiased); mask does not fit.

    Source:
        Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, equations 1 to 3;
        U-centring after Székely and Rizzo, 2014. The linear form takes d x d or n x n products, whichever is smaller.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 3.0]])
        >>> turned = 5 * x @ torch.tensor([[0.0, -1.0], [1.0, 0.0]])
        >>> round(cka(x, turned).item(), 6)
        1.0
    """
    return _alignment(x, y, kernel, sigma, debiased, mask, "cka")[0]


def cka_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    kernel: Kernel = "linear",
    sigma: float = 1.0,
    debiased: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """Ask that the student's features have the teacher's similarity structure: 1 - ``cka``.

    A hidden-state loss that needs no projector. It couples the examples of a batch, so splitting a batch for gradient
    accumulation changes the value, and it does not make features usable by the teacher's next layer; use ``hint_mse``
    with a projector for that.

    Args:
        student: Student features, ``(n, d1)`` or ``(..., d1)``.
        teacher: Teacher features, ``(n, d2)`` or ``(..., d2)``; no gradient flows into them.
        kernel: As for ``cka``.
        sigma: As for ``cka``.
        debiased: As for ``cka``.
        mask: True at examples that count; others are dropped first.

    Returns:
        A scalar without unit; 0 with a graph if there is no example at all.

    Raises:
        InputError: unknown kernel; sigma not above 0; mask not bool.
        ShapeError: numbers of examples differ; a single example (fewer than four if debiased); mask does not fit.

    Source:
        As for ``cka``.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 3.0]])
        >>> cka_loss(7 * x, x).item() < 1e-6
        True
    """
    value, n = _alignment(student, teacher, kernel, sigma, debiased, mask, "cka_loss")
    return 1 - value if n else value


def _alignment(
    x: Tensor, y: Tensor, kernel: Kernel, sigma: float, debiased: bool, mask: Tensor | None, where: str
) -> tuple[Tensor, int]:
    """Return CKA and the number of examples it is of."""
    check_choice(kernel, ("linear", "rbf"), where, "kernel")
    check_positive(sigma, where, "sigma")
    x, y = full_pair(x, y, where)
    if x.ndim < 2 or x.shape[:-1] != y.shape[:-1]:
        raise ShapeError(
            "numbers of examples differ",
            where=where,
            expected="student (n, d1) and teacher (n, d2)",
            got=f"student {list(x.shape)}, teacher {list(y.shape)}",
        )
    check_mask(mask, x.shape[:-1], where, "one entry per example")
    x, y = (x.flatten(0, -2), y.flatten(0, -2)) if mask is None else (x[mask], y[mask])
    n, least = x.shape[0], 4 if debiased else 2
    if n == 0:
        return zero_with_graph(x), 0
    if n < least:
        raise ShapeError("too few examples to compare", where=where, expected=f"n >= {least}", got=f"n = {n}")
    with without_autocast(x):
        if kernel == "linear" and not debiased and max(x.shape[1], y.shape[1]) < n:
            x, y = x - x.mean(0), y - y.mean(0)
            return (y.T @ x).square().sum() / (_norm(x.T @ x) * _norm(y.T @ y) + _EPS), n
        centre = _u_centred if debiased else _centred
        K, L = (centre(_gram(z, kernel, sigma)) for z in (x, y))
        return (K * L).sum() / (_norm(K) * _norm(L) + _EPS), n


def _norm(matrix: Tensor) -> Tensor:
    return torch.linalg.vector_norm(matrix)


def _gram(z: Tensor, kernel: Kernel, sigma: float) -> Tensor:
    """Return the n x n kernel matrix. Moving the origin to the mean changes no centred kernel and keeps digits."""
    z = z - z.mean(0)
    if kernel == "linear":
        return z @ z.T
    # The form by differences: |a|² + |b|² - 2ab loses near neighbours in float32.
    squared = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist").square()
    # If more than half of all pairs coincide the median is 0; the smallest number then keeps 0 / 0 out.
    median = squared.flatten().median().clamp_min(torch.finfo(squared.dtype).tiny)
    return torch.exp(-squared / (2 * sigma**2 * median))


def _centred(K: Tensor) -> Tensor:
    return K - K.mean(0) - K.mean(1, keepdim=True) + K.mean()


def _u_centred(K: Tensor) -> Tensor:
    """Return K centred so that products of two such matrices are unbiased; the diagonal is left out and 0."""
    n = K.shape[0]
    diagonal = torch.eye(n, dtype=torch.bool, device=K.device)
    K = K.masked_fill(diagonal, 0)
    K = K - K.sum(0) / (n - 2) - K.sum(1, keepdim=True) / (n - 2) + K.sum() / ((n - 1) * (n - 2))
    return K.masked_fill(diagonal, 0)
