"""The catalogue: one row per distillation system."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class System:
    """A row of ``potstill methods``.

    Attributes:
        name: Short name.
        kind: policy, loss, objective, students, data or pipeline.
        paper: Source.
        api: Dotted names that make it up.
        recipe: A packaged recipe that runs it, or None.
        evidence: Committed result file, or None.
    """

    name: str
    kind: str
    paper: str
    api: tuple[str, ...]
    recipe: str | None = None
    evidence: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return asdict(self)


CATALOGUE: tuple[System, ...] = (
    System(
        "optima",
        "policy",
        "Module-wise Adaptive Distillation, arXiv 2310.04550",
        ("potstill.policies.OptimaPolicy", "potstill.losses.module_hidden_loss"),
        "optima-scenes",
        "benchmarks/results/optima_scenes.csv",
    ),
)
