"""Losses over large vocabularies that never form the logits of all tokens.

What they take in place of logits is ``LazyLogits``: hidden states and the output head. Logits, their softmax and their
gradient exist for some rows at a time; ``docs/losses/large-vocabularies.md`` tells how, and what it costs.
"""

from typing import TYPE_CHECKING

from potstill._lazy import lazy_names

if TYPE_CHECKING:
    from potstill.losses.fused._chunks import BUDGET
    from potstill.losses.fused.lazy import LazyLogits
    from potstill.losses.fused.terms import Term, by_rows, fused_loss, fused_terms, is_by_rows
    from potstill.losses.fused.words import TokenLogProbs, token_log_probs

__all__ = [
    "BUDGET",
    "LazyLogits",
    "Term",
    "TokenLogProbs",
    "by_rows",
    "fused_loss",
    "fused_terms",
    "is_by_rows",
    "token_log_probs",
]

_HOMES = {
    "BUDGET": "_chunks",
    "LazyLogits": "lazy",
    "Term": "terms",
    "TokenLogProbs": "words",
    "by_rows": "terms",
    "fused_loss": "terms",
    "fused_terms": "terms",
    "is_by_rows": "terms",
    "token_log_probs": "words",
}

__getattr__, __dir__ = lazy_names(__name__, globals(), _HOMES)
