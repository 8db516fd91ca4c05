"""AMAD: every teacher head teaches every student head, by how alike their maps are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._attention import Maps, check_options, divided_by_sum, over_heads, over_samples, unit
from potstill.losses._common import Reduction, check_choice, check_positive, without_autocast

Variant = Literal["kl", "mse", "token_kl", "projected_kl"]
VARIANTS = ("kl", "mse", "token_kl", "projected_kl")


def amad_loss(
    student_attn: Tensor,
    teacher_attn: Tensor,
    *,
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    variant: Variant = "kl",
    tau: float = 1.0,
    head_reduction: Literal["sum", "mean"] = "sum",
    eps: float = 1e-12,
    projection: Callable[[Tensor], Tensor] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Ask that each teacher head's map can be mixed from the student's maps, alike heads weighing most.

    For a student with fewer heads, or heads in another order: no head is paired with another by number. Head i of the
    teacher gives head j of the student the weight a_ij = softmax over j of (cosine of their maps / tau); its target is
    the mixture of student maps with these weights. With tau = 1 the weights stay within a factor e of each other, so
    the loss is not 0 for equal models whose heads differ; a tau of 0.1 aligns harder. With equal heads that do
    correspond use ``attention_kl``. Costs two batched matrix products of Ht x Hs x QK, memory for Ht + Hs maps.

    Args:
        student_attn: Student attention probabilities before dropout, ``(B, Hs, Q, K)``. Hs need not divide Ht.
        teacher_attn: Teacher attention probabilities, ``(B, Ht, Q, K)``; no gradient flows into them.
        query_mask: True at query rows that count, ``(B, Q)``; None = all.
        key_mask: True at keys that count, ``(B, K)``; None = all. Rows are divided by what is left of their sum, and
            one with nothing left is 0. A causal triangle needs no mask.
        variant: "kl", KL(teacher || mixture), mean over query rows; "mse", squared distance of the maps scaled to
            length 1; "token_kl", weights for each query row by itself, KL summed over query rows; "projected_kl", as
            "kl" on student maps that went through ``projection``.
        tau: Temperature of the weights; smaller is harder. Usual: 0.05 to 1.
        head_reduction: "sum" over the teacher's heads, or "mean".
        eps: Floor of a probability inside the logarithm.
        projection: A trained map ``(B, Hs, Q, K)`` to the same shape, not below 0 (``AttentionProjection``); for
            "projected_kl" and only there. Masked positions are 0 when it sees them and made 0 after it.
        reduction: "mean" over the samples, where one without a query that counts enters with 0; "sum"; or "none" for
            ``(B,)``.

    Returns:
        Nats, for "mse" no unit; a scalar unless ``reduction`` is "none".

    Raises:
        InputError: a map is None or not floating point; negative entries; rows that do not sum to 1 ± 0.001 where no
            mask is given, plus half a unit in the last place of the type (bf16: ± 0.0049); tau or eps not above 0;
            unknown variant, head_reduction or reduction; projection missing or not asked for; a mask not bool.
        ShapeError: not four axes; B, Q or K differ; a model without heads; a mask or projection that does not fit.

    Source:
        Zhao et al., "No Head Left Behind", AAAI 2024, equations 2 to 12. Ours: the mixture of "kl" is taken of the
        probabilities, not of the maps scaled to length 1, which are no distributions; masking; the mean over query
        rows in "kl"; ``tau``; mixtures of "projected_kl" divided by their row sums.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[[[1.0, 0.0]]]])
        >>> student = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
        >>> round(amad_loss(student, teacher).item(), 6), round(amad_loss(student, teacher, variant="mse").item(), 6)
        (0.313262, 0.144659)
    """
    check_choice(variant, VARIANTS, "amad_loss", "variant")
    check_options(reduction, head_reduction, eps, "amad_loss")
    check_positive(tau, "amad_loss", "tau")
    if (projection is None) == (variant == "projected_kl"):
        raise InputError(
            "projection is missing" if projection is None else "projection has no use here",
            where="amad_loss",
            expected='variant="projected_kl" together with projection=AttentionProjection(Q, K)',
            got=f'variant="{variant}"',
        )
    maps = Maps(student_attn, teacher_attn, query_mask, key_mask, "amad_loss")
    with without_autocast(maps.student):
        values = _per_head(maps, variant, tau, eps, projection)
    return over_samples(over_heads(values, head_reduction), reduction)


def _per_head(
    maps: Maps, variant: Variant, tau: float, eps: float, projection: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """Return one value per sample and teacher head, ``(B, Ht)``."""
    student, teacher = maps.student, maps.teacher
    if variant == "token_kl":
        student, teacher = student.transpose(1, 2), teacher.transpose(1, 2)  # (B, Q, H, K): a row is a vector
        rows = maps.kl(teacher, _weights(unit(teacher), unit(student), tau) @ student, eps)  # (B, Q, Ht)
        return rows.sum(1)
    if projection is not None:
        student = maps.hide(_projected(projection, student))
    s, t = student.flatten(2), teacher.flatten(2)  # (B, H, n)
    s_unit, t_unit = unit(s), unit(t)
    a = _weights(t_unit, s_unit, tau)  # (B, Ht, Hs)
    if variant == "mse":
        return (t_unit - a @ s_unit).square().sum(-1)
    mixture = (a @ s).view_as(teacher)
    if projection is not None:
        mixture = divided_by_sum(mixture)
    return maps.mean_over_queries(maps.kl(teacher, mixture, eps))


def _weights(t_unit: Tensor, s_unit: Tensor, tau: float) -> Tensor:
    """Return the weights of the student's heads for each head of the teacher, ``(..., Ht, Hs)``."""
    return torch.softmax(t_unit @ s_unit.transpose(-1, -2) / tau, dim=-1)


def _projected(projection: Callable[[Tensor], Tensor], student: Tensor) -> Tensor:
    out = projection(student)
    if out.shape != student.shape:
        raise ShapeError(
            "projection changes the shape", where="amad_loss", expected=list(student.shape), got=list(out.shape)
        )
    return out.to(student.dtype)
