"""Hidden states of one module: the term that OPTIMA switches on and off."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import check_mask, full_pair, reduce_rows, without_autocast


def module_hidden_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    projections: Sequence[Tensor | None] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Ask that the matched layers of a module have the teacher's hidden states: the mean of their squared errors.

    One value per module, the mean over its layer pairs, so a module with more layers weighs no more. The pairing of
    layers and the training of the projections belong to the caller. Where only the geometry of the states matters, or
    no projection is wanted, ``cka_loss`` and ``minilm_relation`` are the alternatives.

    Args:
        student: Hidden states of the student's layers, one ``(B, T, D_s)`` per pair.
        teacher: Hidden states of the matched teacher layers, ``(B, T, D_t)``; no gradient flows into them.
        projections: One ``(D_t, D_s)`` matrix per pair (trained with the student, dropped at export), None for a pair
            of equal widths; None instead of the list = no projection at all.
        mask: True at tokens that count, ``(B, T)``; None = all.

    Returns:
        A scalar in squared units of the features: per layer the mean over tokens that count and channels, then the mean
        over layers. 0 with a graph if B is 0.

    Raises:
        InputError: lists empty or of different lengths; mask not bool, or without any token that counts.
        ShapeError: widths differ without a projection; a projection, B, T or the mask does not fit.

    Source:
        Liang et al., "Module-wise Adaptive Distillation for Multimodality Foundation Models" (OPTIMA), NeurIPS 2023.
        The mean over layers follows the first author's public layer-wise code; the masked mean is our reading.

    Example:
        >>> import torch
        >>> states = [torch.ones(1, 2, 3), torch.zeros(1, 2, 3)]
        >>> module_hidden_loss(states, [torch.zeros(1, 2, 3)] * 2).item()
        0.5
    """
    name = "module_hidden_loss"
    if not len(student):
        raise InputError("no layer pair", where=name, expected="at least one student and one teacher layer")
    for label, layers in (("teacher layers", teacher), ("projections", projections)):
        if layers is not None and len(layers) != len(student):
            raise InputError(
                f"numbers of student layers and {label} differ", where=name, expected=len(student), got=len(layers)
            )
    pairs = list(zip(student, teacher, projections or [None] * len(student)))
    for i, (h_s, h_t, weight) in enumerate(pairs):
        _check_pair(h_s, h_t, weight, f"{name}: pair {i}")
        check_mask(mask, h_s.shape[:2], f"{name}: pair {i}", "(B, T)")
    if mask is not None and len(mask) and not mask.any():
        raise InputError("mask leaves no token", where=name, expected="at least one True", hint="Skip such a batch.")
    return torch.stack([_layer_error(*pair, mask, name) for pair in pairs]).mean()


def _check_pair(h_s: Tensor, h_t: Tensor, weight: Tensor | None, where: str) -> None:
    if h_s.ndim != 3 or h_t.ndim != 3 or h_s.shape[:2] != h_t.shape[:2]:
        raise ShapeError(
            "hidden states do not fit",
            where=where,
            expected="student (B, T, D_s) and teacher (B, T, D_t)",
            got=f"student {list(h_s.shape)}, teacher {list(h_t.shape)}",
        )
    D_s, D_t = h_s.shape[-1], h_t.shape[-1]
    if weight is None and D_s != D_t:
        raise ShapeError(
            f"widths differ: student has {D_s} channels, teacher {D_t}",
            where=where,
            hint=f"Pass a projection of shape ({D_t}, {D_s}) for this pair.",
        )
    if weight is not None and weight.shape != (D_t, D_s):
        raise ShapeError(
            "projection does not fit", where=where, expected=f"(D_t, D_s) = {[D_t, D_s]}", got=list(weight.shape)
        )


def _layer_error(h_s: Tensor, h_t: Tensor, weight: Tensor | None, mask: Tensor | None, where: str) -> Tensor:
    h_s, h_t = full_pair(h_s, h_t, where)
    if mask is not None:
        # Only tokens that count go through the projection: 0 times a NaN at a masked one would be NaN in its gradient.
        h_s, h_t = h_s[mask], h_t[mask]
    if weight is not None:
        with without_autocast(h_s):
            h_s = h_s @ weight.to(h_s.dtype).T
    return reduce_rows((h_s - h_t).square().mean(-1), None, "mean")
