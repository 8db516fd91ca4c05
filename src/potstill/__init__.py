"""Potstill: distil large multimodal models into small students, module by module.

``import potstill`` is cheap: torch is loaded when the first name that needs it is used.

Example::

    import potstill

    recipe = potstill.load_recipe("optima-scenes", ["train.steps=200"])
    print(potstill.plan(recipe)[0]["modules"])               # layer maps, shapes, projectors: before anything runs
    run = potstill.distill(recipe, out="runs/first")         # train, export, measure, report
    print(run.metrics["models"]["student"]["tasks"])         # also in runs/first/metrics.json
    student = potstill.load_model("runs/first/student")      # a plain model again
    scores = potstill.evaluate_model("runs/first/student", recipe, split="heldout_vendor")
    potstill.build_report(["runs/first", "runs/second"], "compare.html")
    potstill.distill(recipe, out="runs/first", resume=True)  # goes on where it was stopped

    # Data of your own: a "files" source in the recipe, or any map-style datasets with a collator.
    data = potstill.source_from_datasets({"train": train, "test": test}, collator)
    potstill.distill(recipe, out="runs/mine", source=data)
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from potstill._version import __version__

_HOME = {
    "AttentionTap": "potstill.taps",
    "DistillModule": "potstill.train",
    "DistillationArguments": "potstill.train",
    "DistillationTrainer": "potstill.train",
    "HiddenObjective": "potstill.objectives",
    "LabelObjective": "potstill.objectives",
    "LiveTeacher": "potstill.teachers",
    "OutputObjective": "potstill.objectives",
    "PotstillError": "potstill.errors",
    "Recipe": "potstill.recipe",
    "Run": "potstill.run",
    "Signal": "potstill.taps",
    "Taps": "potstill.taps",
    "Where": "potstill.objectives",
    "build_report": "potstill.report",
    "distill": "potstill.run",
    "evaluate_model": "potstill.run",
    "load_model": "potstill.models.load",
    "load_recipe": "potstill.recipe",
    "plan": "potstill.run",
    "source_from_datasets": "potstill.data.files_source",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'potstill' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
