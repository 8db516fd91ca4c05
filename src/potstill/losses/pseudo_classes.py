"""LELP: every class is split softly into pseudo-classes along the teacher's embedding, and the student learns those."""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import (
    REDUCTIONS,
    Reduction,
    blank,
    check_choice,
    check_mask,
    check_positive,
    full_pair,
    log_probs,
    reduce_rows,
    without_autocast,
)


@torch.no_grad()
def lelp_targets(
    embeddings: Tensor,
    class_probs: Tensor,
    mean: Tensor,
    directions: Tensor,
    scale: Tensor,
    null_projector: Tensor | None = None,
    beta: float = 1.0,
) -> Tensor:
    """Split the teacher's probability of every class over S pseudo-classes, by where its embedding lies.

    q_cs = p_c softmax_s(((P h - mean_c) · u_cs) / (scale_c beta)), for every class c and not only the one decided for.
    A large ``beta`` splits evenly, a small one puts each example into one pseudo-class.

    Args:
        embeddings: What goes into the teacher's output layer, ``(N, D)``, of the input that the student sees.
        class_probs: The teacher's softmax, ``(N, C)``.
        mean: ``LELPBasis.mean``, ``(C, D)``.
        directions: ``LELPBasis.directions``, ``(C, D, S)``.
        scale: ``LELPBasis.scale``, ``(C,)``.
        null_projector: ``LELPBasis.null_projector``, ``(D, D)``, or None.
        beta: Temperature of the split; 0.5 to 3.

    Returns:
        Probabilities ``(N, C, S)`` whose sum over S is ``class_probs``; no gradient flows through them.

    Raises:
        InputError: beta not above 0; NaN or Inf among the embeddings; rows of ``class_probs`` that are no
            probabilities (their sum may differ from 1 by 1e-3); a scale that is not above 0.
        ShapeError: something does not fit.

    Source:
        arXiv 2409.20449, section 3; the common scale of a class is ours (see ``fit_lelp``).

    Example:
        >>> import torch
        >>> h, p = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.4]])
        >>> basis = (torch.zeros(2, 2), torch.eye(2).expand(2, 2, 2), torch.ones(2))
        >>> [round(x, 6) for x in lelp_targets(h, p, *basis)[0, 0].tolist()]
        [0.438635, 0.161365]
    """
    name = "lelp_targets"
    check_positive(beta, name, "beta")
    h, p = full_pair(embeddings, class_probs, name)
    _check_basis(h, p, mean, directions, scale, null_projector, name)
    mean, directions, scale = (x.detach().to(h) for x in (mean, directions, scale))
    _check_values(h, p, scale, name)
    # What all classes have in common takes no part: it would only cost digits.
    centre = mean.mean(0)
    with without_autocast(h):
        x = h if null_projector is None else h @ null_projector.detach().to(h)
        along = torch.einsum("nd,cds->ncs", x - centre, directions)
        along = along - torch.einsum("cd,cds->cs", mean - centre, directions)
    along = along - along.amax(-1, keepdim=True)  # before the division: a tiny beta would overflow
    return p.unsqueeze(-1) * (along / scale[:, None] / beta).softmax(-1)


def lelp_loss(
    student_logits: Tensor, targets: Tensor, mask: Tensor | None = None, *, reduction: Reduction = "mean"
) -> Tensor:
    """Train the student's C·S outputs on the targets of ``lelp_targets``: one cross-entropy over all pseudo-classes.

    For teachers of few classes, whose probabilities say little beyond the decision, and for students trained long
    enough: with few steps the finer targets cost more than they give. S = 1 is plain distillation at T = 1.

    Args:
        student_logits: ``(N, C·S)``; pseudo-class s of class c stands at ``c·S + s``.
        targets: ``(N, C, S)``; no gradient flows into them.
        mask: True at rows that count, ``(N,)``; None = all.
        reduction: "mean" over the rows that count, "sum", or "none" for ``(N,)`` with 0 at masked rows.

    Returns:
        Nats, at least the entropy of the targets; a scalar unless ``reduction`` is "none".

    Raises:
        InputError: unknown reduction; mask not bool, or without a row that counts where a mean is asked for.
        ShapeError: logits, targets or the mask do not fit.

    Source:
        arXiv 2409.20449, section 3: a single cross-entropy, no factor T². The paper adds no labels; where they are
        wanted, the class logit is the log-sum-exp over its pseudo-classes.

    Example:
        >>> import torch
        >>> round(lelp_loss(torch.zeros(1, 4), torch.tensor([[[0.5, 0.1], [0.2, 0.2]]])).item(), 6)
        1.386294
    """
    name = "lelp_loss"
    check_choice(reduction, REDUCTIONS, name, "reduction")
    logits, targets = full_pair(student_logits, targets, name)
    if logits.ndim != 2 or targets.ndim != 3 or logits.shape != targets.flatten(1).shape:
        raise ShapeError(
            "logits and targets do not fit",
            where=name,
            expected="logits (N, C·S) and targets (N, C, S)",
            got=f"{list(logits.shape)} and {list(targets.shape)}",
            hint="widen_head gives the student one output for every pseudo-class.",
        )
    check_mask(mask, logits.shape[:1], name, "(N,)")
    if reduction == "mean" and mask is not None and len(mask) and not mask.any():
        raise InputError("mask leaves no row", where=name, expected="at least one True", hint="Skip such a batch.")
    q = blank(targets.flatten(1), mask)
    rows = -(q * log_probs(blank(logits, mask)).masked_fill(q == 0, 0)).sum(-1)
    return reduce_rows(rows, mask, reduction)


def lelp_class_probs(student_logits: Tensor, num_classes: int) -> Tensor:
    """Return the probabilities of the classes, each the sum over its pseudo-classes; their argmax is the decision.

    Args:
        student_logits: ``(..., C·S)``.
        num_classes: C.

    Returns:
        Probabilities, ``(..., C)``.

    Raises:
        InputError: the logits are not floating point.
        ShapeError: C does not divide the number of logits.

    Source:
        arXiv 2409.20449, section 3.

    Example:
        >>> import torch
        >>> lelp_class_probs(torch.zeros(1, 6), 3).sum().item()
        1.0
    """
    return lelp_class_logits(student_logits, num_classes).softmax(-1)


def lelp_class_logits(student_logits: Tensor, num_classes: int) -> Tensor:
    """Return one logit for each class: the log-sum-exp over its pseudo-classes, for a loss with labels.

    Args:
        student_logits: ``(..., C·S)``.
        num_classes: C.

    Returns:
        Logits, ``(..., C)``, in float32, or float64 if the input is.

    Raises:
        InputError: the logits are not floating point.
        ShapeError: C does not divide the number of logits.

    Source:
        arXiv 2409.20449, section 3.

    Example:
        >>> import torch
        >>> [round(x, 4) for x in lelp_class_logits(torch.tensor([0.0, 0.0, 1.0, 1.0]), 2).tolist()]
        [0.6931, 1.6931]
    """
    name = "lelp_class_logits"
    if not student_logits.is_floating_point():
        raise InputError("logits are not floating point", where=name, got=student_logits.dtype)
    if student_logits.ndim < 1 or num_classes < 1 or student_logits.shape[-1] % num_classes:
        raise ShapeError(
            "classes do not divide the logits",
            where=name,
            expected=f"(..., {num_classes}·S)",
            got=list(student_logits.shape),
        )
    wide = student_logits.to(torch.promote_types(student_logits.dtype, torch.float32))
    return wide.unflatten(-1, (num_classes, -1)).logsumexp(-1)


def _check_basis(
    h: Tensor, p: Tensor, mean: Tensor, directions: Tensor, scale: Tensor, projector: Tensor | None, name: str
) -> None:
    if h.ndim != 2 or p.ndim != 2 or len(h) != len(p):
        raise ShapeError(
            "embeddings and probabilities do not fit",
            where=name,
            expected="(N, D) and (N, C)",
            got=f"{list(h.shape)} and {list(p.shape)}",
        )
    C, D = p.shape[1], h.shape[1]
    wanted = (("mean", mean, (C, D)), ("scale", scale, (C,)), ("null_projector", projector, (D, D)))
    for field, value, shape in wanted:
        if value is not None and value.shape != shape:
            raise ShapeError(
                f"{field} does not fit", where=name, expected=f"{list(shape)} (C = {C}, D = {D})", got=list(value.shape)
            )
    if directions.ndim != 3 or directions.shape[:2] != (C, D) or directions.shape[2] < 1:
        raise ShapeError(
            "directions do not fit", where=name, expected=f"({C}, {D}, S), S >= 1", got=list(directions.shape)
        )


def _check_values(h: Tensor, p: Tensor, scale: Tensor, name: str) -> None:
    finite = torch.isfinite(h).all()
    # NaN fails every comparison, so it is refused as well.
    proper = (p >= 0).all() & ((p.sum(-1) - 1).abs() <= 1e-3).all()
    spread = (scale > 0).all()
    if bool(finite & proper & spread):  # one wait for the device, not three
        return
    if not finite:
        raise InputError("embeddings are not finite", where=name, hint="Look at the teacher, or its precision.")
    if not proper:
        raise InputError(
            "class_probs are no probabilities",
            where=name,
            expected="rows of numbers that are not negative and sum to 1",
            hint="Pass logits.softmax(-1).",
        )
    raise InputError("a class has no spread", where=name, expected="scale above 0", got=scale.min().item())
