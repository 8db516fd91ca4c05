"""DDK's loss: cross-entropy with a little forward KL, over the tokens of causal language models."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import (
    CUT_CLASSES,
    check_classes,
    check_positive,
    checked_logits,
    full_pair,
    kl_rows,
    log_probs,
    over_chunks,
    zero_with_graph,
)

IGNORED = -100


class DDKTerms(NamedTuple):
    """Both terms of ``ddk_loss``, each the mean over the tokens that count.

    Attributes:
        ce: Cross-entropy of the student with the labels, nats.
        kl: KL(teacher || student), nats times T².
    """

    ce: Tensor
    kl: Tensor


def ddk_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, gamma: float = 0.2, temperature: float = 1.0
) -> Tensor:
    """Cross-entropy with the labels plus ``gamma`` times KL(teacher || student), shifted by one here.

    Made for continued pre-training, where the text itself is most of the signal. With few texts, or with the teacher's
    own, give the teacher more than 0.2. Other vocabularies in student and teacher need another loss.

    Args:
        student_logits: ``(B, L, V)``, position t tells of token t + 1: not shifted.
        teacher_logits: The same of the teacher; no gradient flows into them.
        labels: The tokens themselves, ``(B, L)``, not shifted; -100 = not to be learned.
        gamma: Weight of the divergence, 0 or more.
        temperature: T of the divergence alone, which is multiplied by T².

    Returns:
        Nats: the mean over the labels that count, 0 with a graph if none does. ``ddk_terms`` gives both parts.

    Raises:
        InputError: gamma negative or not finite; temperature not above 0; a label that is no class.
        ShapeError: not three axes; vocabularies, leading shapes or labels do not fit.

    Source:
        Liu et al., "DDK: Distilling Domain Knowledge for Efficient Large Language Models", NeurIPS 2024, equation 3.
        It is written KL(student, teacher); as the text sets it against reverse KL, it is read as forward KL. T² is ours
        and 1 at the paper's T = 1.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 2, 2), torch.tensor([[[0.0, 0.0], [5.0, 0.0]]])
        >>> round(ddk_loss(student, teacher, torch.tensor([[0, 1]])).item(), 6)
        0.693147
    """
    if not (gamma >= 0 and math.isfinite(gamma)):
        raise InputError("gamma does not fit", where="ddk_loss", expected="a finite number, 0 or more", got=gamma)
    terms = _terms(student_logits, teacher_logits, labels, temperature, "ddk_loss")
    return terms.ce + gamma * terms.kl


def ddk_terms(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float = 1.0) -> DDKTerms:
    """Return cross-entropy and divergence of ``ddk_loss`` apart, for logs or another weighing.

    Not needed for training: ``ddk_loss`` is their sum.

    Args:
        student_logits: As in ``ddk_loss``.
        teacher_logits: As there.
        labels: As there.
        temperature: As there.

    Returns:
        A ``DDKTerms`` of two scalars.

    Raises:
        InputError: as ``ddk_loss``.
        ShapeError: as ``ddk_loss``.

    Source:
        As ``ddk_loss``.

    Example:
        >>> import torch
        >>> logits = torch.zeros(1, 2, 2)
        >>> [round(term.item(), 6) for term in ddk_terms(logits, logits, torch.tensor([[0, 1]]))]
        [0.693147, 0.0]
    """
    return _terms(student_logits, teacher_logits, labels, temperature, "ddk_terms")


def _terms(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, name: str) -> DDKTerms:
    check_positive(temperature, name, "temperature")
    student, teacher = checked_logits(student, teacher, None, None, name, CUT_CLASSES)
    if student.ndim != 3:
        raise ShapeError("logits do not fit", where=name, expected="(B, L, V)", got=list(student.shape))
    full_pair(student[:0], teacher[:0], name)
    is_learned = labels != IGNORED
    labels = check_classes(labels, is_learned, student.shape[:2], student.shape[-1], name)[:, 1:]
    counts = is_learned[:, 1:]

    def rows(s: Tensor, t: Tensor, label: Tensor) -> Tensor:
        s, t = full_pair(s, t, name)
        kl = kl_rows(log_probs(t, temperature), log_probs(s, temperature)) * temperature**2
        return torch.stack([F.cross_entropy(s, label, reduction="none"), kl], dim=-1)

    student, teacher = student[:, :-1], teacher.detach()[:, :-1]
    found = over_chunks(rows, student.shape[-1], student[counts], teacher[counts], labels[counts])
    ce, kl = found.unbind(-1)
    n = max(1, len(found))
    return DDKTerms(ce.sum() / n + zero_with_graph(student), kl.sum() / n + zero_with_graph(student))
