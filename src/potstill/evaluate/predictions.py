"""What a model predicts, also where it does not return it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from potstill.models.families import family_of
from potstill.taps import Taps


def outputs_of(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """Run ``model(**inputs)`` and return its output, with ``logits`` if the model computes but does not return them.

    Where they are made is what the model's family says (``Family.prediction``): BLIP answers questions without
    returning its scores.
    """
    family = family_of(model)
    if family is None or family.prediction is None:
        return model(**inputs)
    with Taps(model, [family.prediction], where="prediction") as taps:
        taps.open()
        output = model(**inputs)
        output["logits"] = taps.close()[family.prediction]
    return output
