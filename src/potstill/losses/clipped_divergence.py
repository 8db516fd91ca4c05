"""DAC-KL: forward KL on the band of classes that matters to the teacher, its ends given as quantiles."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import (
    CUT_CLASSES,
    check_choice,
    check_positive,
    checked_logits,
    full_pair,
    kl_rows,
    log_probs,
    over_chunks,
    zero_with_graph,
)

GateMode = Literal["hard", "soft"]
GATE_MODES = ("hard", "soft")
NO_TARGET = -100
_SHIFT = 2.0  # a class exactly on a threshold keeps sigmoid(2) = 0.88 of its weight in a soft gate
_FLOOR = -1e6  # below any log-probability that is not 0; a banned class (-inf) would make thresholds NaN


class GatedTokens(NamedTuple):
    """What ``dac_kl_tokens`` tells of the tokens that count, N of them in reading order.

    Attributes:
        kl: Divergence within the gate, nats times T², ``(N,)``; of 0 where the gate keeps no class.
        coverage: The teacher's probability that passes the gate, ``(N,)``; the levels have a gradient through it.
        kept: Sum of the gate over the classes, ``(N,)``, no gradient.
    """

    kl: Tensor
    coverage: Tensor
    kept: Tensor


def dac_kl_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    lower: Tensor | float,
    upper: Tensor | float,
    targets: Tensor | None = None,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    mode: GateMode = "hard",
    sharpness: float = 0.5,
) -> Tensor:
    """KL(teacher || student) on the classes whose teacher probability lies between two quantiles of all of them.

    Both distributions are cut to the band, the true class kept in any case, and made whole again, so that a small
    student need not match tens of thousands of classes that the teacher holds impossible. Levels are fixed ("hard") or
    learned by a ``QuantileNet`` ("soft": hard gates give it no gradient); learned ones need the penalty that
    ``dac_kl_tokens`` shows, or they close the gate. Not for a handful of classes, all of which matter. What the student
    thinks outside the band is not seen at all, so keep a cross-entropy beside it.

    Args:
        student_logits: ``(..., V)``, at each position the logits of its token: shifted already.
        teacher_logits: The same of the teacher; no gradient flows into them.
        lower: Level of the band's lower end in [0, 1], for all or for each position ``(...)``; 0 = the least class.
        upper: Level of its upper end, above ``lower``; 1 = the largest class.
        targets: True class of each position ``(...)``, whose gate is 1; -100 = it has none. None = nowhere.
        mask: True at positions that count, ``(...)``; None = all.
        temperature: T; both logits are divided by it, and the loss multiplied by T².
        mode: "hard", the gate is 0 or 1, or "soft", it falls off over ``sharpness``.
        sharpness: Width of a soft gate's edges in nats.

    Returns:
        Nats times T², the mean over the positions that count; 0 with a graph if none does.

    Raises:
        InputError: levels not 0 <= lower < upper <= 1; unknown mode; temperature or sharpness not above 0; a target
            that is no class; mask not bool.
        ShapeError: vocabularies, leading shapes, levels, targets or the mask do not fit.

    Source:
        Liu et al., "Multi-Granularity Semantic Revision for Large Language Model Distillation", arXiv 2407.10068,
        DAC-KL. The paper's text is not exact about the gate: quantiles of log-probabilities with linear interpolation,
        the soft gate and the treatment of the true class are our reading. A token whose hard gate keeps no class (both
        thresholds between two neighbours) costs 0 and counts.

    Example:
        >>> import torch
        >>> teacher, student = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log(), torch.tensor([[0.4, 0.4, 0.1, 0.1]]).log()
        >>> round(dac_kl_loss(student, teacher, 0.5, 1.0).item(), 6)
        0.031584
    """
    tokens = _tokens(
        student_logits, teacher_logits, lower, upper, targets, mask, temperature, mode, sharpness, "dac_kl_loss"
    )
    return tokens.kl.mean() if len(tokens.kl) else tokens.kl.sum()


def dac_kl_tokens(
    student_logits: Tensor,
    teacher_logits: Tensor,
    lower: Tensor | float,
    upper: Tensor | float,
    targets: Tensor | None = None,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    mode: GateMode = "hard",
    sharpness: float = 0.5,
) -> GatedTokens:
    """Return the terms of ``dac_kl_loss`` token by token, and how much of the teacher passes each gate.

    For training the levels: a network that minimises the divergence alone closes the gate. The penalty against that is
    ``penalty * relu(least - coverage).mean()``; with least 0.9, 10 nats hold, 1 does not.

    Args:
        student_logits: As in ``dac_kl_loss``.
        teacher_logits: As there.
        lower: As there.
        upper: As there.
        targets: As there.
        mask: As there.
        temperature: As there.
        mode: As there.
        sharpness: As there.

    Returns:
        A ``GatedTokens`` of the N positions that count.

    Raises:
        InputError: as ``dac_kl_loss``.
        ShapeError: as ``dac_kl_loss``.

    Source:
        As ``dac_kl_loss``; the penalty is ours.

    Example:
        >>> import torch
        >>> p = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
        >>> tokens = dac_kl_tokens(p, p, 0.5, 1.0)
        >>> round(tokens.coverage.item(), 6), tokens.kept.item()
        (0.8, 2.0)
    """
    return _tokens(
        student_logits, teacher_logits, lower, upper, targets, mask, temperature, mode, sharpness, "dac_kl_tokens"
    )


def _tokens(
    student: Tensor,
    teacher: Tensor,
    lower: Tensor | float,
    upper: Tensor | float,
    targets: Tensor | None,
    mask: Tensor | None,
    temperature: float,
    mode: GateMode,
    sharpness: float,
    name: str,
) -> GatedTokens:
    check_choice(mode, GATE_MODES, name, "mode")
    check_positive(temperature, name, "temperature")
    check_positive(sharpness, name, "sharpness")
    student, teacher = checked_logits(student, teacher, mask, None, name, CUT_CLASSES)
    full_pair(student[:0], teacher[:0], name)  # refuses what is not floating point; the copies are made by chunk
    shape, V = student.shape[:-1], student.shape[-1]
    kept = torch.ones(shape, dtype=torch.bool, device=student.device) if mask is None else mask
    lower, upper = (_level(x, kept, student, field, name) for x, field in ((lower, "lower"), (upper, "upper")))
    wrong = ~((lower >= 0) & (lower < upper) & (upper <= 1))
    if wrong.any():
        raise InputError(
            "the levels are no band",
            where=name,
            expected="0 <= lower < upper <= 1",
            got=f"lower {lower[wrong][0].item():g}, upper {upper[wrong][0].item():g}",
        )
    targets = _targets(targets, kept, V, name)
    # Only the largest classes have to be in order where every lower end is high.
    ordered = V - int((lower.min() * (V - 1)).floor()) if len(lower) else V
    ordered = V if ordered > V // 8 else ordered

    def rows(s: Tensor, t: Tensor, low: Tensor, high: Tensor, target: Tensor) -> Tensor:
        s, t = full_pair(s, t, name)
        lp, lq = log_probs(t, temperature), log_probs(s, temperature)
        log_gate = _log_gate(lp, low, high, target, ordered, None if mode == "hard" else sharpness)
        gate = log_gate.exp()
        nothing = (gate == 0).all(-1, keepdim=True)
        inside = log_gate.masked_fill(nothing, 0)
        kl = kl_rows(F.log_softmax(lp + inside, dim=-1), F.log_softmax(lq + inside, dim=-1))
        kl = kl.masked_fill(nothing.squeeze(-1), 0)
        return torch.stack([kl * temperature**2, (gate * lp.exp()).sum(-1), gate.detach().sum(-1)], dim=-1)

    counted = (x.reshape(-1, V) if mask is None else x[mask] for x in (student, teacher.detach()))
    found = over_chunks(rows, V, *counted, lower, upper, targets)
    kl, coverage, width = found.unbind(-1)
    return GatedTokens(kl + zero_with_graph(student), coverage, width.detach())


def _log_gate(
    lp: Tensor, lower: Tensor, upper: Tensor, target: Tensor, ordered: int, sharpness: float | None
) -> Tensor:
    """Return the logarithm of the gate ``(N, V)``; hard if ``sharpness`` is None."""
    lp = lp.clamp_min(_FLOOR)
    top = lp.topk(ordered, dim=-1).values if ordered < lp.shape[-1] else lp.sort(dim=-1, descending=True).values
    low, high = (_quantile(top, level, lp.shape[-1]).unsqueeze(-1) for level in (lower, upper))
    if sharpness is None:
        gate = torch.zeros_like(lp).masked_fill((lp < low) | (lp > high), -torch.inf)
    else:
        gate = F.logsigmoid((lp - low) / sharpness + _SHIFT) + F.logsigmoid((high - lp) / sharpness + _SHIFT)
    has_target = target >= 0
    own = gate.gather(-1, target.clamp_min(0).unsqueeze(-1)).masked_fill(has_target.unsqueeze(-1), 0)
    return gate.scatter(-1, target.clamp_min(0).unsqueeze(-1), own)


def _quantile(top: Tensor, level: Tensor, V: int) -> Tensor:
    """Return the quantile of each row whose largest values are ``top``; the level has a gradient through its place."""
    place = level * (V - 1)
    below = place.detach().floor()
    share = place - below
    at = V - 1 - below.long()  # counted from the largest
    x, above = (top.gather(-1, i.unsqueeze(-1)).squeeze(-1) for i in (at, (at - 1).clamp_min(0)))
    return x + share * (above - x)


def _level(level: Tensor | float, kept: Tensor, student: Tensor, field: str, name: str) -> Tensor:
    """Return the level of every position that counts, in the working precision."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    if not isinstance(level, Tensor):
        return torch.full((int(kept.sum()),), float(level), dtype=dtype, device=student.device)
    if level.ndim and level.shape != kept.shape:
        raise ShapeError(
            f"{field} does not fit", where=name, expected=f"one number, or {list(kept.shape)}", got=list(level.shape)
        )
    return level.to(dtype).expand(kept.shape)[kept]


def _targets(targets: Tensor | None, kept: Tensor, V: int, name: str) -> Tensor:
    if targets is None:
        return torch.full((int(kept.sum()),), NO_TARGET, device=kept.device)
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise InputError("targets are not class ids", where=name, expected="integers", got=targets.dtype)
    if targets.shape != kept.shape:
        raise ShapeError("targets do not fit", where=name, expected=list(kept.shape), got=list(targets.shape))
    targets = targets.long()[kept]
    strange = targets[targets >= V]
    if strange.numel():
        raise InputError("a target is no class", where=name, expected=f"at most {V - 1}", got=strange[0].item())
    return targets
