"""SCRG: which token of a student's own response the teacher is to replace."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import CUT_CLASSES, checked_logits, full_pair, kl_rows, log_probs, over_chunks


class Correction(NamedTuple):
    """One token for each response.

    Attributes:
        position: Where it stands in the response, ``(B,)``; -1 = nothing to correct.
        replacement: The teacher's token for that place, ``(B,)``; -1 likewise.
    """

    position: Tensor
    replacement: Tensor


@torch.no_grad()
def scrg_select(student_logits: Tensor, teacher_logits: Tensor, tokens: Tensor, mask: Tensor) -> Correction:
    """Name the worst token of every response: among those the teacher would not have chosen, where KL is largest.

    For responses the student wrote itself; ``potstill.data.generation.scrg_regenerate`` puts the teacher's token there
    and lets the student write on. No use on texts that are not the student's: nothing in them is its mistake.

    Args:
        student_logits: ``(B, T, V)``, at each position the logits of its token: shifted already.
        teacher_logits: The same of the teacher.
        tokens: The response, ``(B, T)``.
        mask: True at its tokens, ``(B, T)``, the end-of-sequence token among them; others are never chosen.

    Returns:
        A ``Correction``: position and replacement, both -1 where the teacher's first choice is the token everywhere. Of
        equally bad tokens the earliest. Nothing has a gradient.

    Raises:
        InputError: tokens that are no whole numbers; mask not bool.
        ShapeError: not three axes; vocabularies, leading shapes, tokens or the mask do not fit.

    Source:
        Liu et al., "Multi-Granularity Semantic Revision for Large Language Model Distillation", arXiv 2407.10068,
        SCRG. The direction of KL (teacher to student, T = 1) and the rules for ties and for no mistake are our reading.

    Example:
        >>> import torch
        >>> teacher, student = torch.tensor([[[0.0, 1.0], [0.0, 3.0]]]), torch.zeros(1, 2, 2)
        >>> [x.item() for x in scrg_select(student, teacher, torch.tensor([[0, 0]]), torch.ones(1, 2).bool())]
        [1, 1]
    """
    name = "scrg_select"
    student, teacher = checked_logits(student_logits, teacher_logits, mask, None, name, CUT_CLASSES)
    if student.ndim != 3:
        raise ShapeError("logits do not fit", where=name, expected="(B, T, V)", got=list(student.shape))
    full_pair(student[:0], teacher[:0], name)
    if tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise InputError("tokens are no whole numbers", where=name, got=tokens.dtype)
    if tokens.shape != student.shape[:2]:
        raise ShapeError("tokens do not fit", where=name, expected=list(student.shape[:2]), got=list(tokens.shape))
    B, T = tokens.shape
    if T == 0:
        nothing = torch.full((B,), -1, device=tokens.device)
        return Correction(nothing, nothing.clone())
    choice = teacher.argmax(-1)
    wrong = mask & (choice != tokens)

    def rows(s: Tensor, t: Tensor) -> Tensor:
        s, t = full_pair(s, t, name)
        return kl_rows(log_probs(t), log_probs(s))

    badness = torch.full((B, T), -torch.inf, dtype=torch.float64, device=tokens.device)
    badness[wrong] = over_chunks(rows, student.shape[-1], student[wrong], teacher[wrong]).double()
    place = torch.arange(T, device=tokens.device).expand(B, T)
    worst = wrong & (badness == badness.amax(1, keepdim=True))
    position = place.masked_fill(~worst, T).amin(1)  # the earliest: argmax promises no order among equals
    is_any = wrong.any(1)
    replacement = choice.gather(1, position.clamp_max(T - 1).unsqueeze(1)).squeeze(1)
    return Correction(position.masked_fill(~is_any, -1), replacement.masked_fill(~is_any, -1))
