"""Class-relation distillation: how a sample of an unknown class resembles the known ones, kept while new ones form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import check_positive, full_pair, zero_with_graph


def class_relation_kd(
    old_logits: Tensor,
    new_logits: Tensor,
    labeled_mask: Tensor,
    *,
    temperature: float = 0.1,
    kd_temperature: float = 4.0,
    detach_weight: bool = False,
) -> Tensor:
    """Cross-entropy of old and new distribution over the known classes, on unlabelled rows, gated by the new model.

    With n = new logits / (temperature · kd_temperature), q = softmax of its first K entries, p that of the old logits,
    and w = the mass that softmax(n) leaves on the known classes, divided by its mean over all views, heads and rows:
    kd_temperature² · mean(w · -Σ p log q). A row that the model already gives to a new class teaches little. Use it
    while new classes are discovered beside known ones, with the model before the discovery as the teacher; without
    known classes, or where old and new have nothing in common, it has nothing to say.

    The gate couples the rows of a batch: there is no "sum", splitting a batch changes the value, and under several
    ranks w is divided by the mean of each rank unless the rows are gathered first.

    Args:
        old_logits: Logits of the frozen model over K known classes, ``(V, B, K)`` for V views; no gradient.
        new_logits: Logits over K known and U new classes, ``(V, H, B, K + U)``, one H for each head of new classes;
            H = 1 for a single head.
        labeled_mask: True at rows with a label, ``(B,)``: they do **not** count, whatever stands there.
        temperature: Temperature of cosine logits, tau.
        kd_temperature: Further temperature of this term, T; its square scales the value.
        detach_weight: Take the gate as a constant: an ablation. The gradient changes, the value does not.

    Returns:
        Nats times T², a scalar; 0 with a graph if every row has a label.

    Raises:
        InputError: a temperature not above 0; ``labeled_mask`` not bool; logits not floating point.
        ShapeError: no known or no new class, views or rows that do not fit, a mask that is not ``(B,)``.

    Source:
        "Class-relation Knowledge Distillation for Novel Class Discovery", ICCV 2023, arXiv 2307.09158. The paper writes
        KL; this is the cross-entropy of the released code, which differs in gradient because the entropy of p is
        weighted too. Logarithms throughout, where the code takes the logarithm of a softmax.

    Example:
        >>> import torch
        >>> old, new = torch.zeros(1, 1, 2), torch.tensor([[[[0.0, 0.0, 3.0]]]])
        >>> labeled = torch.tensor([False])
        >>> round(class_relation_kd(old, new, labeled, temperature=1, kd_temperature=1).item(), 6)
        0.693147
    """
    where = "class_relation_kd"
    check_positive(temperature, where, "temperature")
    check_positive(kd_temperature, where, "kd_temperature")
    _check_shapes(old_logits, new_logits, labeled_mask, where)
    new, old = full_pair(new_logits, old_logits, where)
    K, counts = old.shape[-1], ~labeled_mask
    new, old = new[:, :, counts], old[:, counts].unsqueeze(1)  # (V, H, N, K + U), (V, 1, N, K)
    if new.numel() == 0:
        return zero_with_graph(new_logits).to(new.dtype)
    n = new / (temperature * kd_temperature)
    p = F.softmax(old / (temperature * kd_temperature), -1)
    log_q = F.log_softmax(n[..., :K], -1).masked_fill(p == 0, 0)  # a banned class costs nothing
    log_mass = n[..., :K].logsumexp(-1) - n.logsumexp(-1)
    # w / mean(w) as a softmax: masses may all be too small to be divided.
    gate = log_mass.flatten().softmax(0).view_as(log_mass) * log_mass.numel()
    if detach_weight:
        gate = gate.detach()
    return kd_temperature**2 * (gate * -(p * log_q).sum(-1)).mean()


def _check_shapes(old: Tensor, new: Tensor, labeled: Tensor, where: str) -> None:
    if old.ndim != 3 or new.ndim != 4:
        raise ShapeError(
            "wrong number of axes",
            where=where,
            expected="old (V, B, K) and new (V, H, B, K + U)",
            got=f"{list(old.shape)} and {list(new.shape)}",
        )
    (V, B, K), (V_new, H, B_new, C) = old.shape, new.shape
    if (V_new, B_new) != (V, B):
        raise ShapeError(
            "views or rows of old and new logits differ",
            where=where,
            expected=f"new [{V}, H, {B}, K + U]",
            got=list(new.shape),
        )
    if K < 1 or C <= K:
        raise ShapeError(
            "no known or no new class", where=where, expected=f"K >= 1 and more than K = {K} new logits", got=C
        )
    if V < 1 or H < 1:
        raise ShapeError("no view or no head", where=where, expected="V, H >= 1", got=list(new.shape))
    if labeled.dtype != torch.bool:
        raise InputError(
            "labeled_mask is not bool", where=where, expected="torch.bool, True = has a label", got=labeled.dtype
        )
    if labeled.shape != (B,):
        raise ShapeError("labeled_mask does not fit", where=where, expected=f"(B,) = [{B}]", got=list(labeled.shape))
