"""Which samples to learn from next: policies over the training set, renewed before every epoch."""

from potstill.data.selection.base import SELECTIONS, Chosen, Pool, SelectionPolicy
from potstill.data.selection.web_instances import Selection, select_web_instances
from potstill.data.selection.web_policy import WebInstancePolicy

__all__ = [
    "SELECTIONS",
    "Chosen",
    "Pool",
    "Selection",
    "SelectionPolicy",
    "WebInstancePolicy",
    "select_web_instances",
]
