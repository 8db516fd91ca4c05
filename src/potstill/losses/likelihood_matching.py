"""Approximate likelihood matching: distillation between models whose tokenizers differ."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._chunks import chunk_ids, chunk_sums, last_in_chunk, members
from potstill.losses._common import check_choice, check_positive, check_unit, zero_with_graph

DIFFS = ("binary_ce", "abs", "reverse_binary_kl", "binary_kl_limit")
_REDUCTIONS = ("mean", "sum")


def alm_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_ids: Tensor,
    teacher_ids: Tensor,
    student_chunks: Tensor,
    teacher_chunks: Tensor,
    student_loss_mask: Tensor,
    teacher_loss_mask: Tensor,
    student_boundary: Tensor | None = None,
    teacher_boundary: Tensor | None = None,
    temperature: float = 100.0,
    append_boundary: bool = False,
    merge_threshold: float | None = None,
    diff: str = "binary_ce",
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """Pull the student's probability of every chunk of text to the teacher's, whatever tokens each of them reads.

    For teachers with another vocabulary: no token is mapped to another, only the probabilities of the tokens that are
    there are used. Where both models share a tokenizer, ``kd_kl`` tells the student far more per position. The least
    value is not 0 but the entropy of the teacher's own (binary) choice, so watch the gap, not the value.

    Args:
        student_logits: ``[B, L_s, V_s]``; position i gives the chances of token i + 1.
        teacher_logits: ``[B, L_t, V_t]``; no gradient flows into them.
        student_ids: Tokens that the student read, ``[B, L_s]``.
        teacher_ids: Tokens that the teacher read of the same text, ``[B, L_t]``.
        student_chunks: Bool ``[B, L_s, C]``: token i belongs to chunk c; or the number of each token's chunk,
            ``[B, L_s]``, -1 = none, which needs no memory for C. Tokens of one chunk stand side by side.
        teacher_chunks: The same of the teacher, with the same numbers.
        student_loss_mask: True at tokens that are to be learnt, ``[B, L_s]``.
        teacher_loss_mask: The same of the teacher.
        student_boundary: True at tokens that begin where a word can end, ``[V_s]`` (``boundary_mask``); may be shorter
            than an output layer that is padded.
        teacher_boundary: The same of the teacher, ``[V_t]``.
        temperature: τ; log-probabilities of chunks are divided by it. Usual: 100.
        append_boundary: Add to each chunk the log-chance that it ends there, which takes off the bias of tokenizers
            that end a word elsewhere.
        merge_threshold: γ in [0, 1]: chunks are joined up to the next at whose end the teacher expects a boundary with
            a chance above γ; the rest of a row is a last group. None = the finest chunks. 0.1 is recommended.
        diff: "binary_ce"; "reverse_binary_kl", KL(student || teacher); "abs", the plain difference of the
            log-probabilities, without τ and ``eps``; or "binary_kl_limit", τ times the binary KL as τ grows endlessly.
        eps: Taken off the log-probabilities, which keeps them below 0.
        reduction: "mean" over the groups of the batch, or "sum".

    Returns:
        Nats, a scalar in float32 or better; 0 with a graph if no chunk counts.

    Raises:
        InputError: temperature not above 0; eps below 0; γ outside [0, 1]; unknown diff or reduction; a token in two
            chunks; correction or merging asked for without both boundary masks; a mask without any boundary; a mask
            that is not bool; an id that is no class.
        ShapeError: shapes do not fit, or the sides have different numbers of chunks.

    Source:
        Minixhofer, Vulić, Ponti, "Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching", NeurIPS
        2025, arXiv 2503.20083; boundary and merging as the authors' code. There the mean of merged chunks is over a
        count that has been merged twice; here it is over the groups.

    Example:
        >>> import torch
        >>> logits, ids = torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]])
        >>> chunks, mask = torch.tensor([[-1, 0, 0]]), torch.tensor([[False, True, True]])
        >>> round(alm_loss(logits, logits, ids, ids, chunks, chunks, mask, mask, temperature=1.0).item(), 4)
        0.2338
    """
    _check_options(temperature, eps, diff, merge_threshold, reduction, "alm_loss")
    needs_boundary = append_boundary or merge_threshold is not None
    if needs_boundary and (student_boundary is None or teacher_boundary is None):
        raise InputError(
            "append_boundary and merge_threshold need to know what a boundary is",
            where="alm_loss",
            expected="student_boundary and teacher_boundary",
            hint="Make them by boundary_mask(tokenizer).",
        )
    chunks_s, C_s = chunk_ids(student_chunks, student_ids, "alm_loss", "student")
    chunks_t, C_t = chunk_ids(teacher_chunks, teacher_ids, "alm_loss", "teacher")
    if C_s is not None and C_t is not None and C_s != C_t:
        raise ShapeError(
            "the sides have different numbers of chunks", where="alm_loss", expected=f"{C_t} (teacher)", got=C_s
        )
    C = C_s or C_t or 1 + max((int(x.max()) for x in (chunks_s, chunks_t) if x.numel()), default=-1)
    s, has_s, ends_s = chunk_logprobs(
        student_logits,
        student_ids,
        chunks_s,
        student_loss_mask,
        student_boundary if needs_boundary else None,
        side="student",
        num_chunks=C,
    )
    with torch.no_grad():
        t, has_t, ends_t = chunk_logprobs(
            teacher_logits,
            teacher_ids,
            chunks_t,
            teacher_loss_mask,
            teacher_boundary if needs_boundary else None,
            side="teacher",
            num_chunks=C,
        )
    if len(s) != len(t):
        raise ShapeError("batches differ", where="alm_loss", expected=f"{len(t)} rows (teacher)", got=len(s))
    return alm_loss_from_logprobs(
        s,
        t,
        has_s & has_t,
        ends_s,
        ends_t,
        temperature=temperature,
        append_boundary=append_boundary,
        merge_threshold=merge_threshold,
        diff=diff,
        eps=eps,
        reduction=reduction,
    )


def alm_loss_from_logprobs(
    student_chunk_logp: Tensor,
    teacher_chunk_logp: Tensor,
    valid: Tensor,
    student_boundary_logp: Tensor | None = None,
    teacher_boundary_logp: Tensor | None = None,
    *,
    temperature: float = 100.0,
    append_boundary: bool = False,
    merge_threshold: float | None = None,
    diff: str = "binary_ce",
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """Compute ``alm_loss`` from log-probabilities of chunks: for a teacher that is cached, or asked over a network.

    Not for chunks of different texts: the same entry has to be the same piece of text on both sides.

    Args:
        student_chunk_logp: Log-probability of each chunk, ``[..., C]``, in the order of the text.
        teacher_chunk_logp: The teacher's; no gradient flows into it.
        valid: True at entries that are chunks.
        student_boundary_logp: Log-chance of a boundary behind each chunk, ``[..., C]``.
        teacher_boundary_logp: The teacher's.
        temperature: As for ``alm_loss``, as are the others.
        append_boundary: Add the log-chance of a boundary.
        merge_threshold: Join chunks; needs the teacher's boundary.
        diff: How groups are compared.
        eps: Taken off the log-probabilities.
        reduction: "mean" over groups, or "sum".

    Returns:
        Nats, a scalar; 0 with a graph if nothing is valid.

    Raises:
        InputError: as ``alm_loss``.
        ShapeError: shapes do not fit.

    Source:
        As ``alm_loss``, steps behind the log-probabilities of chunks.
    """
    where = "alm_loss_from_logprobs"
    _check_options(temperature, eps, diff, merge_threshold, reduction, where)
    given = {
        "teacher_chunk_logp": teacher_chunk_logp,
        "valid": valid,
        "student_boundary_logp": student_boundary_logp,
        "teacher_boundary_logp": teacher_boundary_logp,
    }
    for name, x in given.items():
        if x is not None and x.shape != student_chunk_logp.shape:
            raise ShapeError(
                f"{name} does not fit", where=where, expected=list(student_chunk_logp.shape), got=list(x.shape)
            )
    if valid.dtype != torch.bool:
        raise InputError("valid is not bool", where=where, expected="torch.bool, True = counts", got=valid.dtype)
    if (append_boundary or merge_threshold is not None) and (
        student_boundary_logp is None or teacher_boundary_logp is None
    ):
        raise InputError("append_boundary and merge_threshold need both boundary log-probabilities", where=where)
    if not bool(valid.any()):
        return zero_with_graph(student_chunk_logp.float())
    dtype = torch.promote_types(student_chunk_logp.dtype, torch.float32)
    # What stands at entries that are no chunk reaches neither value nor gradient.
    s, t = (x.to(dtype).masked_fill(~valid, 0).clamp(max=0) for x in (student_chunk_logp, teacher_chunk_logp.detach()))
    ends_s = ends_t = None
    if student_boundary_logp is not None and teacher_boundary_logp is not None:
        ends_s, ends_t = (
            x.to(dtype).masked_fill(~valid, 0).clamp(max=0)
            for x in (student_boundary_logp, teacher_boundary_logp.detach())
        )
    if merge_threshold is not None:
        group, last = _groups(ends_t, valid, merge_threshold)
        s, t = (chunk_sums(x, group, s.shape[-1]) for x in (s, t))
        valid = last >= 0
        ends_s, ends_t = (x.gather(-1, last.clamp_min(0)) for x in (ends_s, ends_t))
    if append_boundary:
        s, t = s + ends_s, t + ends_t
    values = _difference(s[valid], t[valid], temperature, diff, eps)
    return values.sum() if reduction == "sum" else values.mean()


def _check_options(
    temperature: float, eps: float, diff: str, merge_threshold: float | None, reduction: str, where: str
) -> None:
    check_positive(temperature, where, "temperature")
    if not (eps >= 0 and math.isfinite(eps)):
        raise InputError("eps does not fit", where=where, expected="a finite number, at least 0", got=eps)
    check_choice(diff, DIFFS, where, "diff")
    check_choice(reduction, _REDUCTIONS, where, "reduction")
    if merge_threshold is not None:
        check_unit(merge_threshold, where, "merge_threshold")


def chunk_logprobs(
    logits: Tensor,
    ids: Tensor,
    chunks: Tensor,
    loss_mask: Tensor,
    boundary: Tensor | None = None,
    *,
    num_chunks: int | None = None,
    side: str = "model",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return what ``alm_loss`` needs to know of one model: how likely it finds every chunk of a text.

    For a teacher that is asked once: two numbers a chunk are all that has to be kept. Not for single tokens, whose
    log-probabilities say more than their sum.

    Args:
        logits: ``[B, L, V]``; position i gives the chances of token i + 1.
        ids: Tokens, ``[B, L]``.
        chunks: Bool ``[B, L, C]``, or the number of each token's chunk, ``[B, L]``, -1 = none.
        loss_mask: True at tokens that count, ``[B, L]``.
        boundary: True at tokens that begin where a word can end, ``[V]``; None = the boundary is not asked for.
        num_chunks: C, if the chunks are numbers and there may be more than these rows show.
        side: What messages call the model.

    Returns:
        Log-probabilities ``[B, C]`` in nats, 0 where there is no chunk; bool ``[B, C]``, True where a chunk has a token
        that counts and is not the first of its row; and the log-chance of a boundary behind each chunk, or None.

    Raises:
        InputError, ShapeError: as ``alm_loss``.

    Source:
        As ``alm_loss``, steps 1 to 4 of its algorithm in the authors' code.
    """
    chunks, C = chunk_ids(chunks, ids, "alm_loss", side)
    C = C if C is not None else num_chunks
    C = C if C is not None else 1 + (int(chunks.max()) if chunks.numel() else -1)
    if logits.ndim != 3 or logits.shape[:2] != ids.shape:
        raise ShapeError(
            f"the {side}'s logits do not fit", where="alm_loss", expected=f"{[*ids.shape, 'V']}", got=list(logits.shape)
        )
    if not logits.is_floating_point():
        raise InputError(f"the {side}'s logits are not floating point", where="alm_loss", got=logits.dtype)
    inside = members(chunks, loss_mask, "alm_loss", side)
    counted = inside.clone()
    counted[:, :1] = False  # nothing says how likely the first token is
    of_chunk = chunks.masked_fill(~counted, C)
    end = last_in_chunk(inside, chunks, C)  # [B, C]
    has = chunk_sums(counted.long(), of_chunk, C) > 0
    # Only rows that are read: a softmax over a vocabulary costs as much at padding as anywhere.
    before = torch.zeros_like(counted)
    before[:, :-1] = counted[:, 1:]
    read = before
    if boundary is not None:
        rows, columns = has.nonzero(as_tuple=True)
        read = before.clone()
        read[rows, end[rows, columns]] = True
    chosen = logits[read]  # [N, V]
    chosen = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
    total = chosen.logsumexp(-1)
    following = torch.zeros_like(ids)
    following[:, :-1] = ids[:, 1:]
    target = following[read].long() * before[read]
    if target.numel() and not 0 <= int(target.min()) <= int(target.max()) < logits.shape[-1]:
        raise InputError(
            f"a token of the {side} is no class of its logits",
            where="alm_loss",
            expected=f"0 to {logits.shape[-1] - 1}",
            got=int(target.max()),
            hint="Each model has to be given ids of its own tokenizer.",
        )
    token = (chosen.gather(-1, target[:, None])[:, 0] - total) * before[read]
    placed = token.new_zeros(ids.shape).masked_scatter(read, token)
    placed = torch.cat([placed.new_zeros(len(ids), 1), placed[:, :-1]], dim=1)  # at the token itself
    sums = chunk_sums(placed.masked_fill(~counted, 0), of_chunk, C)
    if boundary is None:
        return sums, has, None
    boundary = _fitted_boundary(boundary, logits.shape[-1], side).to(chosen.device)
    ends = chosen[:, boundary].logsumexp(-1) - total  # [N]
    ends = ends.new_zeros(ids.shape).masked_scatter(read, ends)
    return sums, has, ends.gather(1, end.clamp_min(0)).masked_fill(~has, 0)


def _fitted_boundary(boundary: Tensor, V: int, side: str) -> Tensor:
    where = f"alm_loss.{side}_boundary"
    if boundary.dtype != torch.bool or boundary.ndim != 1:
        raise InputError(
            "no boundary mask", where=where, expected="bool [V]", got=f"{boundary.dtype} {list(boundary.shape)}"
        )
    if boundary.numel() > V:
        raise ShapeError("is of a larger vocabulary", where=where, expected=f"at most {V} tokens", got=boundary.numel())
    if not bool(boundary.any()):
        raise InputError("no token is a boundary", where=where, expected="at least one True")
    return torch.cat([boundary, boundary.new_zeros(V - boundary.numel())])


def _groups(ends_t: Tensor, valid: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Return the group of every chunk, ``[..., C]`` (C where it is none), and the last chunk of every group (or -1)."""
    C = valid.shape[-1]
    # In logs: 0 joins nothing, but for a boundary that is impossible, and 1 joins all.
    closes = valid & (ends_t > (math.log(threshold) if threshold > 0 else -math.inf))
    group = (closes.cumsum(-1) - closes.long()).masked_fill(~valid, C)
    number = torch.arange(C, device=valid.device).expand_as(group)
    last = torch.full((*valid.shape[:-1], C + 1), -1, device=valid.device)
    last = last.scatter_reduce(-1, group, number, "amax")[..., :C]
    return group, last


def _difference(s: Tensor, t: Tensor, temperature: float, diff: str, eps: float) -> Tensor:
    if diff == "abs":
        return (t - s).abs()
    if diff == "binary_kl_limit":
        x, y = _below_zero(s - eps), _below_zero(t - eps)
        return (y - x) + y * ((-x).log() - (-y).log())
    x, y = _below_zero(s / temperature - eps), _below_zero(t / temperature - eps)
    if diff == "reverse_binary_kl":
        return x.exp() * (x - y) - x.expm1() * (_log1mexp(x) - _log1mexp(y))
    return -(y.exp() * x - y.expm1() * _log1mexp(x))


def _below_zero(x: Tensor) -> Tensor:
    """Keep what is certain (a log-probability of 0) just below, where logs and gradients are finite."""
    return x.clamp(max=-torch.finfo(x.dtype).tiny)


def _log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - exp(x)) for x < 0, exact near 0 and far below."""
    far = x < -math.log(2)
    return torch.where(far, (-x.masked_fill(~far, -1).exp()).log1p(), (-x.masked_fill(far, -0.5).expm1()).log())
