"""A loss on kept classes as a term on logits that are never formed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from potstill.losses._common import by_rows
from potstill.losses._top_k import TopK
from potstill.losses.fused.terms import Term
from potstill.losses.top_k_targets import cached_loss


def cached_term(targets: TopK, loss: str, options: Mapping[str, Any], mask: Tensor | None) -> Term:
    """Return ``cached_loss`` for ``fused_terms``, which shows it the student's logits some rows at a time.

    Args:
        targets: The kept classes of all rows.
        loss: Name of the loss.
        options: Its further keyword arguments.
        mask: True at rows that count, ``(...)``; None = all.
    """
    names = [name for name in ("ids", "log_probs", "counts") if getattr(targets, name) is not None]
    temperatures = list(targets.tail)
    rows = [getattr(targets, name) for name in names] + [targets.tail[t] for t in temperatures]

    def of_rows(logits: Tensor, *parts: Tensor, **more: Any) -> Tensor:
        given = dict(zip(names, parts))
        tail = dict(zip(temperatures, parts[len(names) :]))
        return cached_loss(logits, replace(targets, **given, tail=tail, logsumexp=None), loss=loss, **more)

    of_rows.__name__ = loss
    return Term(by_rows(of_rows), rows, dict(options), mask=mask)
