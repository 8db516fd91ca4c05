"""Images collected from the web: keep those that teacher and student trust together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.errors import InputError, ShapeError

_HERE = "select_web_instances"


@dataclass(frozen=True, eq=False)
class Selection:
    """What was chosen of a pool of n samples.

    Attributes:
        indices: Places of the chosen in the pool, the most trusted first, integers ``(m,)``.
        weights: How much each of them is to weigh, ``(m,)``.
        pseudo_labels: The class each of them is taken for, integers ``(m,)``.
        scores: Of the whole pool, ``(n,)``.
    """

    indices: Tensor
    weights: Tensor
    pseudo_labels: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return len(self.indices)


@torch.no_grad()
def select_web_instances(
    teacher_logits: Tensor,
    student_logits: Tensor | None,
    *,
    keep_ratio: float | None = None,
    threshold: float | None = None,
    balanced: bool = False,
) -> Selection:
    """Keep the images on which the joint prediction of teacher and student is most certain.

    For a pool collected by class name, which holds other classes and other styles. Each side weighs in by its own
    certainty, so a student that contradicts the teacher lowers the score of an image, however sure it is. Choose anew
    before every epoch. It does not tell an outlier that both sides are sure of, and prefers easy images: not for
    clean, balanced data.

    Args:
        teacher_logits: Of the un-augmented images, ``(n, K)``.
        student_logits: Likewise, ``(n, K)``; None = by the teacher alone, as in the first epoch, when the student has
            learned nothing yet.
        keep_ratio: Keep this share of the pool, in (0, 1], rounded up; at least one image.
        threshold: Or keep all whose score is at least this; that may be none.
        balanced: With keep_ratio: keep this share of every class, as the teacher sees it, in place of the pool. Scores
            differ between classes, and a class that is not learned in one epoch scores lower in the next: without it
            whole classes can vanish (``docs/data/web-images.md``). Ours, not the paper's.

    Returns:
        The selection: scores are max over k of a p_T + (1 - a) p_S with a = max p_T / (max p_T + max p_S), and the
        weights are the scores. Of equal scores the smaller place comes first.

    Raises:
        InputError: both or neither of keep_ratio and threshold; keep_ratio outside (0, 1]; threshold not finite, or
            with balanced; logits with NaN, or not floating point.
        ShapeError: not ``(n, K)``; n or K differ; n = 0.

    Source:
        Dynamic instance selection of Tang et al., "Distribution Shift Matters for Knowledge Distillation with Webly
        Collected Images", ICCV 2023 (arXiv 2307.11469). The formulas were not available to us and are reconstructed.

    Example:
        >>> import torch
        >>> p_teacher, p_student = torch.tensor([[0.8, 0.2], [0.8, 0.2]]), torch.tensor([[0.4, 0.6], [0.9, 0.1]])
        >>> chosen = select_web_instances(p_teacher.log(), p_student.log(), keep_ratio=0.5)
        >>> chosen.indices.tolist(), chosen.pseudo_labels.tolist(), [round(s, 4) for s in chosen.scores.tolist()]
        ([1], [0], [0.6286, 0.8529])
    """
    if (keep_ratio is None) == (threshold is None):
        raise InputError(
            "how much to keep is said twice" if threshold is not None else "how much to keep is not said",
            where=_HERE,
            expected="either keep_ratio or threshold",
        )
    if keep_ratio is not None and not 0 < keep_ratio <= 1:
        raise InputError("keep_ratio does not fit", where=_HERE, expected="a share in (0, 1]", got=keep_ratio)
    if threshold is not None and not math.isfinite(threshold):
        raise InputError("threshold does not fit", where=_HERE, expected="a finite number", got=threshold)
    if balanced and threshold is not None:
        raise InputError("a threshold is the same for all classes", where=_HERE, expected="keep_ratio with balanced")
    p = p_teacher = _probabilities(teacher_logits, "teacher")
    if student_logits is not None:
        p_student = _probabilities(student_logits, "student").to(p_teacher)
        if p_student.shape != p_teacher.shape:
            raise ShapeError(
                "teacher and student do not speak of the same images and classes",
                where=_HERE,
                expected=f"student {list(p_teacher.shape)}",
                got=list(p_student.shape),
            )
        trust = p_teacher.amax(1, keepdim=True)
        a = trust / (trust + p_student.amax(1, keepdim=True))
        p = a * p_teacher + (1 - a) * p_student
    scores, labels = p.max(1)
    order = scores.argsort(descending=True, stable=True)
    if keep_ratio is not None:
        # A ratio of 0.1 is a little more than a tenth: 30 images would make 4.
        number = max(1, math.ceil(keep_ratio * len(scores) - 1e-9))
    else:
        number = int((scores >= threshold).sum())
    if balanced:
        kept = _shares_of_classes(order, p_teacher.argmax(1)).argsort(stable=True)[:number]
        order = order[kept.sort().values]
    indices = order[:number]
    return Selection(indices, scores[indices], labels[indices], scores)


def _shares_of_classes(order: Tensor, classes: Tensor) -> Tensor:
    """Return, for every image in the given order, which share of its class comes before it."""
    ordered = classes[order]
    by_class = ordered.argsort(stable=True)
    sizes = ordered.bincount()
    first = sizes.cumsum(0) - sizes
    place = torch.empty_like(by_class)
    place[by_class] = torch.arange(len(order), device=order.device)
    return (place - first[ordered] + 0.5) / sizes[ordered]


def _probabilities(logits: Tensor, side: str) -> Tensor:
    if not logits.is_floating_point():
        raise InputError(f"{side} logits are not floating point", where=_HERE, got=logits.dtype)
    if logits.ndim != 2 or 0 in logits.shape:
        raise ShapeError(
            f"{side} logits do not fit", where=_HERE, expected="(n, K) with n and K >= 1", got=list(logits.shape)
        )
    p = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)
    if p.isnan().any():
        row = int(p.isnan().any(1).nonzero()[0])
        raise InputError(f"{side} logits are not finite", where=_HERE, expected="numbers", got=f"NaN in row {row}")
    return p
