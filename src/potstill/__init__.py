"""Potstill: distil large multimodal models into small students, module by module.

``import potstill`` is cheap: torch is loaded when the first name that needs it is used.

Example::

    import potstill

    run = potstill.distill("optima-scenes", out="runs/first")
    print(run.metrics["models"]["student"]["tasks"])
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from potstill._version import __version__

_HOME = {
    "DistillModule": "potstill.train",
    "DistillationArguments": "potstill.train",
    "DistillationTrainer": "potstill.train",
    "HiddenObjective": "potstill.objectives",
    "HiddenTaps": "potstill.taps",
    "LabelObjective": "potstill.objectives",
    "LiveTeacher": "potstill.teachers",
    "OutputObjective": "potstill.objectives",
    "PotstillError": "potstill.errors",
    "Recipe": "potstill.recipe",
    "Run": "potstill.run",
    "Signal": "potstill.taps",
    "Where": "potstill.objectives",
    "build_report": "potstill.report",
    "distill": "potstill.run",
    "load_model": "potstill.models.load",
    "load_recipe": "potstill.recipe",
    "plan": "potstill.run",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'potstill' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
