"""The image space of a vision-language teacher, for a student that is to know classes it never saw."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import (
    REDUCTIONS,
    Reduction,
    blank,
    check_choice,
    check_mask,
    check_positive,
    kl_rows,
    reduce_rows,
    without_autocast,
    zero_with_graph,
)

Contrastive = Literal["bidirectional", "single"]
CONTRASTIVE = ("bidirectional", "single")


def vlm_ood_losses(
    student_image: Tensor,
    teacher_image: Tensor,
    text: Tensor,
    labels: Tensor,
    *,
    k: int = 256,
    tau: float = 0.07,
    filter_misaligned: bool = True,
    contrastive: Contrastive = "bidirectional",
    mask: Tensor | None = None,
) -> dict[str, Tensor]:
    """Teach a small image encoder the image space of CLIP, so that it can name classes by their text alone.

    Four terms, added without weights: name the class by the teacher's text features (``cls``), agree with the teacher
    on the likeliest names (``vlalign``), stand where the teacher's image feature stands (``mse``), and nearer to it
    than to those of other images (``cst``). For open-vocabulary recognition on small devices. Where the set of classes
    is closed, ``kd_kl`` on logits is simpler. ``cst`` couples the rows of a batch: under accumulation and on several
    ranks negatives are those of the micro-batch, so there is no sum over rows.

    Args:
        student_image: Student image features, mapped to the teacher's width, ``(N, D)``.
        teacher_image: Teacher image features of the same images, ``(N, D)``; no gradient flows into them. They may be
            stored, made from a fixed crop, while the student sees random ones.
        text: Teacher text features of the training labels, ``(C, D)``; no gradient flows into them.
        labels: Class of each image, integers ``(N,)`` in [0, C).
        k: How many of the teacher's likeliest classes ``vlalign`` compares.
        tau: Temperature: cosines are divided by it.
        filter_misaligned: Leave images that the teacher itself names wrongly out of ``vlalign``.
        contrastive: "bidirectional", or "single" for student to teacher only.
        mask: True at images that count, ``(N,)``; the others are no negatives either. None = all.

    Returns:
        ``{cls, vlalign, mse, cst, total}``, scalars; nats, but ``mse``, which has no unit. All features are
        normalised to length 1 inside.

    Raises:
        InputError: k < 1; tau not above 0; a label outside [0, C); unknown ``contrastive``; mask not bool; features
            not floating point.
        ShapeError: widths differ; N = 0; labels or the mask do not fit.

    Source:
        Li et al., "Distilling Large Vision-Language Model with Out-of-Distribution Generalizability", ICCV 2023
        (arXiv 2307.03135) and its public code. Where no image is left after filtering, ``vlalign`` is 0.

    Example:
        >>> import torch
        >>> images, text = torch.eye(3), torch.eye(3)
        >>> terms = vlm_ood_losses(2 * images, images, text, torch.tensor([0, 1, 2]), tau=1.0)
        >>> {name: round(value.item(), 4) for name, value in terms.items()}
        {'cls': 0.5514, 'vlalign': 0.0, 'mse': 0.0, 'cst': 0.5514, 'total': 1.1029}
    """
    terms = {
        "cls": vlm_cls_loss(student_image, text, labels, tau=tau, mask=mask),
        "vlalign": vlm_align_loss(
            student_image, teacher_image, text, labels, k=k, tau=tau, filter_misaligned=filter_misaligned, mask=mask
        ),
        "mse": vlm_mse_loss(student_image, teacher_image, mask=mask),
        "cst": vlm_contrast_loss(student_image, teacher_image, tau=tau, contrastive=contrastive, mask=mask),
    }
    return {**terms, "total": sum(terms.values())}


def vlm_cls_loss(
    student_image: Tensor,
    text: Tensor,
    labels: Tensor,
    *,
    tau: float = 0.07,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of naming an image by the nearest text feature.

    Args:
        student_image: Student image features, ``(N, D)``.
        text: Teacher text features of the labels, ``(C, D)``; no gradient flows into them.
        labels: Class of each image, integers ``(N,)``. Those of masked images are not looked at.
        tau: Temperature: cosines are divided by it.
        mask: True at images that count, ``(N,)``; None = all.
        reduction: "mean" over images that count, "sum", or "none" for ``(N,)``, 0 at masked images.

    Returns:
        Nats; a scalar unless ``reduction`` is "none".

    Raises:
        InputError: a label outside [0, C); tau not above 0; unknown reduction; mask not bool.
        ShapeError: widths differ; N = 0; labels or the mask do not fit.

    Source:
        L_cls of Li et al., ICCV 2023 (arXiv 2307.03135).

    Example:
        >>> import torch
        >>> round(vlm_cls_loss(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), tau=1.0).item(), 6)
        0.313262
    """
    where = "vlm_cls_loss"
    check_choice(reduction, REDUCTIONS, where, "reduction")
    check_positive(tau, where, "tau")
    student, text = _directions(where, mask, student_image, text=text)
    logits = _cosines(student, text) / tau
    labels = _known_labels(labels, len(student), text.shape[0], mask, where)
    rows = F.cross_entropy(logits, labels, reduction="none")
    return reduce_rows(rows, mask, reduction)


def vlm_align_loss(
    student_image: Tensor,
    teacher_image: Tensor,
    text: Tensor,
    labels: Tensor | None = None,
    *,
    k: int = 256,
    tau: float = 0.07,
    filter_misaligned: bool = True,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """KL(teacher || student) over the names that the teacher finds likeliest for each image.

    Both sides are normalised anew over those k names; there is no factor tau².

    Args:
        student_image: Student image features, ``(N, D)``.
        teacher_image: Teacher image features, ``(N, D)``; no gradient flows into them.
        text: Teacher text features of the labels, ``(C, D)``; no gradient flows into them.
        labels: Class of each image, integers ``(N,)``; needed only to filter.
        k: How many names; more than C means all.
        tau: Temperature: cosines are divided by it.
        filter_misaligned: Only images whose likeliest name is their label count.
        mask: True at images that count, ``(N,)``; None = all.
        reduction: "mean" over images that count and are not filtered out, "sum" over them, or "none" for ``(N,)``, 0
            at the others.

    Returns:
        Nats; a scalar unless ``reduction`` is "none". 0 with a graph if no image is left.

    Raises:
        InputError: k < 1; labels missing to filter by, or outside [0, C); tau not above 0; unknown reduction; mask not
            bool.
        ShapeError: widths differ; N = 0; labels or the mask do not fit.

    Source:
        L_vlalign of Li et al., ICCV 2023 (arXiv 2307.03135).

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0]])
        >>> round(vlm_align_loss(student, teacher, torch.eye(2), torch.tensor([0]), tau=1.0).item(), 6)
        0.110944
    """
    where = "vlm_align_loss"
    check_choice(reduction, REDUCTIONS, where, "reduction")
    check_positive(tau, where, "tau")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError("k does not fit", where=where, expected="a number of classes, 1 or more", got=k)
    student, teacher, text = _directions(where, mask, student_image, teacher=teacher_image, text=text)
    logits_s, logits_t = _cosines(student, text) / tau, _cosines(teacher, text) / tau
    if labels is not None:
        labels = _known_labels(labels, len(student), text.shape[0], mask, where)
    counts = mask
    if filter_misaligned:
        if labels is None:
            raise InputError("there are no labels to filter by", where=where, hint="Pass filter_misaligned=False.")
        is_right = logits_t.argmax(-1) == labels
        counts = is_right if mask is None else is_right & mask
    top_t, top = logits_t.topk(min(k, text.shape[0]), dim=-1)
    rows = kl_rows(F.log_softmax(top_t, -1), F.log_softmax(logits_s.gather(-1, top), -1))
    return reduce_rows(rows, counts, reduction)


def vlm_mse_loss(
    student_image: Tensor, teacher_image: Tensor, *, mask: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Squared distance between the directions of student and teacher image features: 2 - 2 cos.

    Images that the teacher names wrongly count too: the authors found that leaving them out hurts here.

    Args:
        student_image: Student image features, ``(N, D)``.
        teacher_image: Teacher image features, ``(N, D)``; no gradient flows into them.
        mask: True at images that count, ``(N,)``; None = all.
        reduction: "mean" over images that count, "sum", or "none" for ``(N,)``, 0 at masked images.

    Returns:
        Without unit, 0 to 4; a scalar unless ``reduction`` is "none".

    Raises:
        InputError: unknown reduction; mask not bool; features not floating point.
        ShapeError: widths or numbers of images differ; N = 0; the mask does not fit.

    Source:
        L_mse of Li et al., ICCV 2023 (arXiv 2307.03135).

    Example:
        >>> import torch
        >>> vlm_mse_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])).item()
        2.0
    """
    check_choice(reduction, REDUCTIONS, "vlm_mse_loss", "reduction")
    student, teacher = _directions("vlm_mse_loss", mask, student_image, teacher=teacher_image)
    return reduce_rows((student - teacher).square().sum(-1), mask, reduction)


def vlm_contrast_loss(
    student_image: Tensor,
    teacher_image: Tensor,
    *,
    tau: float = 0.07,
    contrastive: Contrastive = "bidirectional",
    mask: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of finding, among the teacher's features of a batch, the one of the same image; and back.

    Other images of the same class are negatives too. Couples the rows of a batch, so it has no sum over rows; a
    single image has no negative and costs 0.

    Args:
        student_image: Student image features, ``(N, D)``.
        teacher_image: Teacher image features, ``(N, D)``; no gradient flows into them.
        tau: Temperature: cosines are divided by it.
        contrastive: "bidirectional", or "single" for student to teacher only.
        mask: True at images that count, ``(N,)``; the others are dropped first. None = all.

    Returns:
        Nats, a scalar; 0 with a graph if no image counts.

    Raises:
        InputError: tau not above 0; unknown ``contrastive``; mask not bool; features not floating point.
        ShapeError: widths or numbers of images differ; N = 0; the mask does not fit.

    Source:
        L_im-cst of Li et al., ICCV 2023 (arXiv 2307.03135).

    Example:
        >>> import torch
        >>> round(vlm_contrast_loss(torch.eye(2), torch.eye(2).flip(0), tau=1.0).item(), 6)
        1.313262
    """
    where = "vlm_contrast_loss"
    check_choice(contrastive, CONTRASTIVE, where, "contrastive")
    check_positive(tau, where, "tau")
    student, teacher = _directions(where, mask, student_image, teacher=teacher_image)
    if mask is not None:
        student, teacher = student[mask], teacher[mask]
    if len(student) == 0:
        return zero_with_graph(student)
    scores = _cosines(student, teacher) / tau
    own = torch.arange(len(student), device=student.device)
    forth = F.cross_entropy(scores, own)
    return forth if contrastive == "single" else (forth + F.cross_entropy(scores.T, own)) / 2


def caption_contrastive_loss(
    student_image: Tensor, caption: Tensor, labels: Tensor, tau: float = 1.0, *, mask: Tensor | None = None
) -> Tensor:
    """Cross-entropy of finding the caption of an image among those of images of other classes.

    Useful where a captioner says more about an image than the name of its class. Captions of the same class are no
    negatives. Couples the rows of a batch, so it has no sum over rows.

    Args:
        student_image: Student image features, ``(N, D)``.
        caption: Teacher text features of one sentence for each image, ``(N, D)``; no gradient flows into them.
        labels: Class of each image, integers ``(N,)``.
        tau: Temperature: cosines are divided by it. The authors use raw cosines, tau = 1.
        mask: True at images that count, ``(N,)``; the others are dropped first. None = all.

    Returns:
        Nats, a scalar; 0 with a graph if no image counts.

    Raises:
        InputError: tau not above 0; labels no integers; mask not bool; features not floating point.
        ShapeError: widths or numbers of images differ; N = 0; labels or the mask do not fit.

    Source:
        Caption term of the public code of Li et al., ICCV 2023 (arXiv 2307.03135), which puts -1e7 where classes
        agree; -inf, here, is the same in value and gradient.

    Example:
        >>> import torch
        >>> round(caption_contrastive_loss(torch.eye(2), torch.eye(2), torch.tensor([0, 1])).item(), 6)
        0.313262
        >>> caption_contrastive_loss(torch.eye(2), torch.eye(2), torch.tensor([1, 1])).item()
        0.0
    """
    where = "caption_contrastive_loss"
    check_positive(tau, where, "tau")
    student, caption = _directions(where, mask, student_image, caption=caption)
    _check_labels(labels, len(student), where)
    if mask is not None:
        student, caption, labels = student[mask], caption[mask], labels[mask]
    if len(student) == 0:
        return zero_with_graph(student)
    is_same = labels.unsqueeze(0) == labels.unsqueeze(1)
    is_same.fill_diagonal_(False)
    scores = (_cosines(student, caption) / tau).masked_fill(is_same, -torch.inf)
    return F.cross_entropy(scores, torch.arange(len(student), device=student.device))


def _directions(where: str, mask: Tensor | None, student: Tensor, **others: Tensor) -> list[Tensor]:
    """Check features, and return them in one precision and of length 1, all but the student's detached.

    Those beside the student have its rows, but ``text``, which has one row for each class.
    """
    named = {"student": student, **others}
    dtype = torch.float32
    for side, x in named.items():
        if not x.is_floating_point():
            raise InputError(f"{side} is not floating point", where=where, got=x.dtype)
        dtype = torch.promote_types(dtype, x.dtype)
        if x.ndim != 2 or x.shape[0] == 0:
            rows = "C" if side == "text" else "N"
            raise ShapeError(f"{side} features do not fit", where=where, expected=f"({rows}, D) with {rows} >= 1",
                             got=list(x.shape))  # fmt: skip
        if x.shape[1] != student.shape[1]:
            raise ShapeError(
                f"widths differ: student has {student.shape[1]} features, {side} {x.shape[1]}",
                where=where,
                hint="Give the student a linear head to the teacher's width.",
            )
        if side != "text" and x.shape[0] != student.shape[0]:
            raise ShapeError(f"{side} and student do not show the same images", where=where,
                             expected=list(student.shape), got=list(x.shape))  # fmt: skip
    check_mask(mask, student.shape[:1], where, "(N,)")
    directions = []
    for side, x in named.items():
        x = (x if side == "student" else x.detach()).to(dtype)
        directions.append(F.normalize(x if side == "text" else blank(x, mask), dim=1))
    return directions


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    with without_autocast(a):
        return a @ b.T


def _check_labels(labels: Tensor, N: int, where: str) -> None:
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError("labels are not class ids", where=where, expected="integers", got=labels.dtype)
    if list(labels.shape) != [N]:
        raise ShapeError("labels do not fit the images", where=where, expected=f"[{N}]", got=list(labels.shape))


def _known_labels(labels: Tensor, N: int, C: int, mask: Tensor | None, where: str) -> Tensor:
    """Return the labels as long integers, 0 where masked; refuse one that has no text."""
    _check_labels(labels, N, where)
    labels = labels.long() if mask is None else labels.long().masked_fill(~mask, 0)
    strange = labels[(labels < 0) | (labels >= C)]
    if strange.numel():
        raise InputError("a label has no text", where=where, expected=f"0 to {C - 1}", got=strange[0].item())
    return labels
