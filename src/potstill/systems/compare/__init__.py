"""Any set of methods at equal budget on any recipe: run, resumed, measured, tested, drawn."""

from potstill.systems.compare.execute import Comparison, compare

__all__ = ["Comparison", "compare"]
