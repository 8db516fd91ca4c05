"""Which samples to learn from next: policies over the training set, renewed before every epoch."""

from potstill.data.selection.base import SELECTIONS, Chosen, Pool, SelectionPolicy

__all__ = ["SELECTIONS", "Chosen", "Pool", "SelectionPolicy"]
