"""What tuning may change: the learning rate, the weights of terms, and the options that are a method's own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import potstill.losses as losses
from potstill.objectives import OBJECTIVES
from potstill.recipe import Recipe
from potstill.recipe.load import validate
from potstill.run.check import reads_teacher

FACTOR = 3.0
"""Learning rate and weights are tried from the recipe's value divided by this to that value times this."""

SPACES: dict[str, dict[str, tuple[float, float]]] = {
    "crkd_ncd": {"kd_temperature": (1.0, 8.0), "kd_weight": (0.03, 1.0)},
    "dist_loss": {"beta": (0.3, 3.0), "gamma": (0.3, 3.0), "temperature": (1.0, 8.0)},
    "dkd": {"alpha": (0.3, 3.0), "beta": (1.0, 16.0), "temperature": (1.0, 8.0)},
    "generalized_jsd": {"beta": (0.1, 0.9), "temperature": (0.5, 4.0)},
    "kd_kl": {"temperature": (1.0, 8.0)},
    "kdpp": {"temperature": (1.0, 8.0)},
    "kdpp_loss": {"temperature": (1.0, 8.0)},
    "lelp": {"beta": (0.3, 3.0), "temperature": (0.5, 8.0)},
    "pld": {"tau": (0.5, 4.0)},
    "reverse_kl": {"temperature": (0.5, 4.0)},
    "sinkd": {"epsilon": (0.03, 0.3), "temperature": (1.0, 8.0)},
    "tv_distance": {"temperature": (0.5, 4.0)},
    "vlm_ood": {"tau": (0.03, 0.3)},
    "web_distill": {"contrast": (0.03, 0.3), "tau": (0.1, 1.0), "temperature": (1.0, 8.0)},
}
"""Loss -> option -> lowest and highest value, tried on a logarithmic scale."""


@dataclass(frozen=True)
class Range:
    """A positive number to be chosen from [low, high], by logarithm; ``start`` is what the recipe says."""

    low: float
    high: float
    start: float


def space_of(recipe: Recipe) -> dict[str, Range]:
    """Return what a trial may choose, by name: "learning_rate", "<loss>.weight" (a factor), "<loss>.<option>".

    Objectives with the same loss share their choices. A weight is open where the recipe has terms to weigh against it.
    """
    rate = recipe.train.learning_rate
    found = {"learning_rate": Range(rate / FACTOR, rate * FACTOR, rate)}
    sections = [section for _, stage in recipe.staged() for section in stage.objectives]
    for section in sections:
        if (
            len({s.loss for s in sections}) > 1
            and reads_teacher(section.loss)
            and not isinstance(section.weight, str)
            and section.weight
        ):
            found.setdefault(f"{section.loss}.weight", Range(1 / FACTOR, FACTOR, 1.0))
        for option, (low, high) in SPACES.get(section.loss, {}).items():
            value = section.options.get(option, default_of(section.loss, option))
            if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
                start = float(value)
                found.setdefault(f"{section.loss}.{option}", Range(min(low, start), max(high, start), start))
    return found


def default_of(loss: str, option: str) -> Any | None:
    """Return what a loss takes for an option by itself, or None."""
    target = OBJECTIVES.get(loss) if loss in OBJECTIVES else getattr(losses, loss, None)
    parameter = inspect.signature(target).parameters.get(option) if target is not None else None
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def with_choice(recipe: Recipe, choice: Mapping[str, float]) -> Recipe:
    """Return the recipe with what a trial chose."""
    data = recipe.model_dump()
    start = space_of(recipe)
    for name, value in choice.items():
        if name == "learning_rate":
            data["train"]["learning_rate"] = value
            continue
        loss, _, option = name.partition(".")
        for row in _objectives(data):
            if row["loss"] == loss and option == "weight":
                row["weight"] = row["weight"] if isinstance(row["weight"], str) else row["weight"] * value
            elif row["loss"] == loss and (option in row or value != start[name].start):
                row[option] = value
    return validate(data)


def _objectives(data: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield from data["objectives"]
    for stage in data["stages"] or ():
        yield from stage["objectives"] or ()
