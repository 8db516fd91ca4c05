"""Tokens that a student still has: the teacher's rows of the same places."""

from __future__ import annotations

from torch import Tensor

from potstill.errors import InputError, ShapeError


def kept_tokens(teacher: Tensor, keep_ids: Tensor | None, n: int, where: str) -> Tensor:
    """Return the teacher's tokens ``(B, n, D)`` that the student kept, out of ``(B, N, D)``.

    Args:
        teacher: Features of all N tokens.
        keep_ids: Places in the full grid, integers ``(B, n)``; None = the student has all tokens.
        n: Number of the student's tokens.
        where: Name of the loss, for messages.
    """
    B, N = teacher.shape[:2]
    if keep_ids is None:
        if n != N:
            raise ShapeError(
                f"the student has {n} tokens and the teacher {N}",
                where=where,
                hint="Say with keep_ids which of the grid's tokens the student kept.",
            )
        return teacher
    check_ids(keep_ids, (B, n), N, where)
    return teacher.gather(1, keep_ids.long().unsqueeze(-1).expand(-1, -1, teacher.shape[-1]))


def check_ids(keep_ids: Tensor, shape: tuple[int, int], N: int, where: str) -> None:
    """Refuse ids that are no integers, not of ``shape``, or outside a grid of N tokens."""
    if keep_ids.is_floating_point() or keep_ids.is_complex() or keep_ids.dtype.itemsize == 1:
        raise InputError("keep_ids are no places", where=where, expected="integers", got=keep_ids.dtype)
    if tuple(keep_ids.shape) != tuple(shape):
        raise ShapeError(
            "keep_ids do not fit the student's tokens",
            where=where,
            expected=f"(B, n) = {list(shape)}",
            got=list(keep_ids.shape),
        )
    strange = keep_ids[(keep_ids < 0) | (keep_ids >= N)]
    if strange.numel():
        raise InputError("keep_ids name a token that is not there", where=where, expected=f"0 to {N - 1}",
                         got=strange[0].item())  # fmt: skip
