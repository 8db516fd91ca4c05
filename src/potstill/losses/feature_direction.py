"""KD++: student features in the direction of the teacher's class mean, and at least as long as the teacher's."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import (
    REDUCTIONS,
    Reduction,
    blank,
    check_choice,
    check_classes,
    check_mask,
    check_positive,
    full_pair,
    reduce_rows,
    zero_with_graph,
)
from potstill.losses.forward_kl import kd_kl


def nd_loss(
    student: Tensor,
    teacher: Tensor,
    class_means: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    eps: float = 1e-12,
    *,
    allow_empty: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """Turn each penultimate feature towards the teacher's mean of its class, and lengthen it up to the teacher's norm.

    1 - f_s·e / max(|f_s|, |f_t|) with e the unit mean of the class. One cheap term beside any loss on logits, for
    classifiers with labels and means over the training set (``ClassMeanAccumulator``). Of the teacher's feature only
    its length is used. Not for large vocabularies, nor for teachers whose penultimate features are normalised: then
    only the cosine is left.

    Args:
        student: Penultimate features, ``(N, D)``; projected to the teacher's width where widths differ.
        teacher: ``(N, D)``; no gradient flows into them.
        class_means: ``(C, D)``, without a gradient; their lengths play no part.
        labels: True classes, integers ``(N,)``.
        mask: True at rows that count, ``(N,)``; None = all. Labels of other rows are not looked at.
        eps: Smallest denominator. A student feature of zeros costs 1.
        allow_empty: Return 0 with a graph if no row counts, instead of refusing.
        reduction: "mean" over rows that count, "sum", or "none" for ``(N,)`` with 0 at masked rows.

    Returns:
        0 to 2 a row, without unit; a scalar unless ``reduction`` is "none".

    Raises:
        InputError: a label that counts is outside [0, C), or of a class whose mean is 0 (it had no example); means
            that are not finite; no row counts; eps not above 0; unknown reduction; mask not bool.
        ShapeError: not two axes; widths differ; rows, labels or the mask do not fit.

    Source:
        Wang et al., "Improving Knowledge Distillation via Regularizing Feature Norm and Direction", ECCV 2024, arXiv
        2305.17007, as in the authors' code: the gradient flows through the student's norm where that is the larger.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 10.0]])
        >>> round(nd_loss(student, teacher, torch.tensor([[1.0, 0.0]]), torch.tensor([0])).item(), 6)
        0.7
    """
    name = "nd_loss"
    check_choice(reduction, REDUCTIONS, name, "reduction")
    check_positive(eps, name, "eps")
    student, teacher = full_pair(student, teacher, name)
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise ShapeError(
            "features do not fit",
            where=name,
            expected="student and teacher (N, D)",
            got=f"student {list(student.shape)}, teacher {list(teacher.shape)}",
        )
    widths = (student.shape[1], teacher.shape[1], class_means.shape[-1] if class_means.ndim == 2 else None)
    if len(set(widths)) > 1:
        raise ShapeError(
            "widths differ",
            where=name,
            expected="student (N, D), teacher (N, D) and class_means (C, D)",
            got=f"D = {widths[0]}, {widths[1]} and class_means {list(class_means.shape)}",
            hint="Project the student's features to the teacher's width first.",
        )
    check_mask(mask, student.shape[:1], name, "(N,)")
    labels = check_classes(labels, mask, student.shape[:1], len(class_means), name)
    _check_not_empty(student, mask, allow_empty, name)
    means = class_means.detach().to(student.dtype)
    if not means.isfinite().all():
        raise InputError("class means are not finite", where=name)
    length = torch.linalg.vector_norm(means, dim=-1, keepdim=True)
    used = length[labels if mask is None else labels[mask]]
    if not (used > 0).all():
        raise InputError(
            "the mean of a class in the batch is 0: it has no direction",
            where=name,
            hint="Every class needs an example in the pass that takes the means.",
        )
    student, teacher = blank(student, mask), blank(teacher, mask)
    towards = (student * (means / length.masked_fill(length == 0, 1))[labels]).sum(-1)
    norm_s, norm_t = (torch.linalg.vector_norm(x, dim=-1) for x in (student, teacher))
    return reduce_rows(1 - towards / torch.maximum(norm_s, norm_t).clamp_min(eps), mask, reduction)


def kdpp_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    student: Tensor,
    teacher: Tensor,
    class_means: Tensor,
    *,
    ce_weight: float = 1.0,
    kd_weight: float = 1.0,
    nd_weight: float = 1.0,
    temperature: float = 4.0,
    epoch: float | None = None,
    kd_warmup_epochs: float = 0,
    mask: Tensor | None = None,
    allow_empty: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """Add up cross-entropy, distillation of the logits with a warm-up, and ``nd_loss``.

    The whole KD++ in one call, for a loop of one's own. Where another loss on logits is wanted (DKD++, DIST++), add
    ``nd_loss`` to it instead.

    Args:
        student_logits: ``(N, C)``, from the features as they are, not projected.
        teacher_logits: ``(N, C)``; no gradient flows into them.
        labels: True classes, integers ``(N,)``.
        student: Penultimate features, ``(N, D)``; projected where widths differ.
        teacher: ``(N, D)``; no gradient flows into them.
        class_means: ``(C, D)``.
        ce_weight: Factor of the cross-entropy.
        kd_weight: Factor of T² KL(teacher || student).
        nd_weight: Factor of ``nd_loss``. A term with the factor 0 is left out.
        temperature: T of the distillation term.
        epoch: Epochs done so far, from 0; needed for a warm-up.
        kd_warmup_epochs: The distillation term grows from 0 to its factor over so many epochs; the others do not.
        mask: True at rows that count, ``(N,)``; None = all.
        allow_empty: Return 0 with a graph if no row counts, instead of refusing.
        reduction: "mean" over rows that count, "sum", or "none" for ``(N,)``.

    Returns:
        Nats, and ``nd_weight`` times a number without unit; a scalar unless ``reduction`` is "none".

    Raises:
        InputError: a factor, the epoch or the warm-up is negative or not finite; a warm-up without an epoch; otherwise
            as for ``nd_loss``.
        ShapeError: the logits differ in shape; otherwise as for ``nd_loss``.

    Source:
        As for ``nd_loss``.

    Example:
        >>> import torch
        >>> logits, features, means = torch.zeros(1, 2), torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0]] * 2)
        >>> round(kdpp_loss(logits, logits, torch.tensor([1]), features, features, means).item(), 6)
        0.693147
    """
    name = "kdpp_loss"
    check_choice(reduction, REDUCTIONS, name, "reduction")
    for field, value in (
        *(("ce_weight", ce_weight), ("kd_weight", kd_weight), ("nd_weight", nd_weight)),
        *(("kd_warmup_epochs", kd_warmup_epochs), ("epoch", 0 if epoch is None else epoch)),
    ):
        if not (value >= 0 and math.isfinite(value)):
            raise InputError(f"{field} does not fit", where=name, expected="a finite number, not negative", got=value)
    if kd_warmup_epochs and epoch is None:
        raise InputError("a warm-up needs the epoch", where=name, hint="Pass epoch=, the epochs done so far.")
    if student_logits.ndim != 2:
        raise ShapeError("logits do not fit", where=name, expected="(N, C)", got=list(student_logits.shape))
    check_mask(mask, student_logits.shape[:1], name, "(N,)")
    labels = check_classes(labels, mask, student_logits.shape[:1], student_logits.shape[1], name)
    _check_not_empty(student_logits, mask, allow_empty, name)
    rows = zero_with_graph(student_logits.float()) + zero_with_graph(student.float())
    rows = rows.expand(len(student_logits))
    kd_factor = kd_weight * (min(1.0, epoch / kd_warmup_epochs) if kd_warmup_epochs else 1.0)
    logits, _ = full_pair(student_logits, teacher_logits, name)
    if ce_weight:
        rows = rows + ce_weight * F.cross_entropy(blank(logits, mask), labels, reduction="none")
    if kd_factor:
        options = {"temperature": temperature, "mask": mask, "reduction": "none"}
        rows = rows + kd_factor * kd_kl(student_logits, teacher_logits, **options)
    if nd_weight:
        rows = rows + nd_weight * nd_loss(
            student, teacher, class_means, labels, mask, allow_empty=allow_empty, reduction="none"
        )
    return reduce_rows(rows, mask, reduction)


def _check_not_empty(rows: Tensor, mask: Tensor | None, allow_empty: bool, where: str) -> None:
    if not allow_empty and not (len(rows) if mask is None else mask.any()):
        raise InputError(
            "no row counts", where=where, expected="at least one", hint="Skip such a batch, or pass allow_empty=True."
        )
