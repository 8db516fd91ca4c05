"""Hidden states at the ends of chunks: the companion of likelihood matching where a model learns from itself."""

from __future__ import annotations

from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._chunks import chunk_ids, last_in_chunk, members
from potstill.losses._common import full_pair, zero_with_graph


def alm_latents_loss(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    student_chunks: Tensor,
    teacher_chunks: Tensor,
    student_loss_mask: Tensor,
    teacher_loss_mask: Tensor,
    *,
    eps: float = 1e-8,
) -> Tensor:
    """Compare last hidden states where both models have read the same text: at the last token of every chunk.

    For a student that starts as a copy of its teacher and is given another tokenizer (subwords to bytes). Between
    models of different origin the channels mean different things and nothing is gained; of different width they cannot
    be compared at all.

    Args:
        student_hidden: ``[B, L_s, D]``.
        teacher_hidden: ``[B, L_t, D]``; no gradient flows into it.
        student_chunks: As for ``alm_loss``.
        teacher_chunks: As for ``alm_loss``.
        student_loss_mask: True at tokens that count, ``[B, L_s]``.
        teacher_loss_mask: The same of the teacher, ``[B, L_t]``.
        eps: Added to the mean squares.

    Returns:
        The squared difference, divided channel by channel by the teacher's mean square over the chunks that count; its
        mean over channels and chunks, a scalar in float32 or better. 0 with a graph if no chunk counts.

    Raises:
        InputError: a mask is not bool, a token is in two chunks, eps is below 0.
        ShapeError: shapes do not fit, or the widths differ.

    Source:
        Minixhofer et al., arXiv 2503.20083, and the authors' code ("alm_latents").
    """
    where = "alm_latents_loss"
    if student_hidden.ndim != 3 or teacher_hidden.ndim != 3 or student_hidden.shape[-1] != teacher_hidden.shape[-1]:
        raise ShapeError(
            "hidden states do not fit",
            where=where,
            expected="[B, L, D] of one width D",
            got=f"student {list(student_hidden.shape)}, teacher {list(teacher_hidden.shape)}",
            hint="It is for a student that began as a copy of its teacher.",
        )
    if not eps >= 0:
        raise InputError("eps does not fit", where=where, expected="at least 0", got=eps)
    ends = []
    chunks_s, C_s = chunk_ids(student_chunks, student_hidden, where, "student")
    chunks_t, C_t = chunk_ids(teacher_chunks, teacher_hidden, where, "teacher")
    if C_s is not None and C_t is not None and C_s != C_t:
        raise ShapeError(
            "the sides have different numbers of chunks", where=where, expected=f"{C_t} (teacher)", got=C_s
        )
    C = C_s or C_t or 1 + max((int(x.max()) for x in (chunks_s, chunks_t) if x.numel()), default=-1)
    for chunks, mask, side in ((chunks_s, student_loss_mask, "student"), (chunks_t, teacher_loss_mask, "teacher")):
        ends.append(last_in_chunk(members(chunks, mask, where, side), chunks, C))
    rows, columns = ((ends[0] >= 0) & (ends[1] >= 0)).nonzero(as_tuple=True)
    if not len(rows):
        return zero_with_graph(student_hidden.float())
    student, teacher = full_pair(
        student_hidden[rows, ends[0][rows, columns]], teacher_hidden[rows, ends[1][rows, columns]], where
    )
    scale = teacher.square().mean(0) + eps
    return ((student - teacher).square() / scale).mean()
