"""What a model that exists expects of a batch: its tokens, the size of its pictures and how they are normalised."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from potstill.errors import RecipeError
from potstill.models.load import find_model


@dataclass(frozen=True)
class ModelFormat:
    """How a model wants its batches.

    Attributes:
        folder: Where the model is.
        size: Side of its pictures in pixels, or None.
        mean, std: Of the three colours in [0, 1]; subtracted and divided by.
        begin, end: First and last token of what it writes, or None.
    """

    folder: Path
    size: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    begin: int | None
    end: int | None

    def pictures(self, values: torch.Tensor) -> torch.Tensor:
        """Turn pictures in [-1, 1], ``[B, 3, H, W]``, into those the model expects."""
        if self.size is not None and values.shape[-1] != self.size:
            values = F.interpolate(values, (self.size, self.size), mode="bilinear", antialias=True)
        mean, std = (values.new_tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        return (values / 2 + 0.5 - mean) / std


def read_format(name: str, where: str = "made_for") -> ModelFormat:
    """Read the format of a model from its folder; see ``find_model`` for the name.

    Pictures of a model without a ``preprocessor_config.json`` are in [-1, 1], as ours are.

    Raises:
        RecipeError: There is no such model, or its files cannot be read.
    """
    from transformers import AutoConfig

    folder = find_model(name, where=where)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        pictures = _picture_settings(folder)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecipeError(f"its format cannot be read ({reason})", where=where, got=name) from error
    text, vision = getattr(config, "text_config", config), getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None)
    end = getattr(text, "sep_token_id", None)
    return ModelFormat(
        folder,
        size if isinstance(size, int) else None,
        tuple(pictures.get("image_mean") or (0.5, 0.5, 0.5)),
        tuple(pictures.get("image_std") or (0.5, 0.5, 0.5)),
        getattr(text, "bos_token_id", None),
        end if end is not None else getattr(text, "eos_token_id", None),
    )


def _picture_settings(folder: Path) -> dict[str, Any]:
    for file, inside in (("processor_config.json", "image_processor"), ("preprocessor_config.json", None)):
        path = folder / file
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            found = found.get(inside) if inside else found
            if isinstance(found, dict):
                return found
    return {}
