"""From drawn pictures to the numbers a model was trained on: size, mean and spread of each channel."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from potstill.errors import RecipeError

PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class Pixels:
    """How pictures become ``pixel_values``. The default is the scenes' own: as drawn, in [-1, 1].

    Attributes:
        size: Side to enlarge or shrink to (bicubic), in pixels; None = as drawn.
        mean: Subtracted from each channel, of values in [0, 1].
        std: Divided by, afterwards.
    """

    size: int | None = None
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return uint8 ``[B, 3, H, W]`` as contiguous float32 of the same shape, or ``[B, 3, size, size]``."""
        values = pictures.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        if self.size is not None and values.shape[-2:] != (self.size, self.size):
            values = F.interpolate(values, (self.size, self.size), mode="bicubic", antialias=True).clamp_(0, 1)
        mean, std = (torch.tensor(part, dtype=torch.float32).view(3, 1, 1) for part in (self.mean, self.std))
        return values.sub_(mean).div_(std)


def read_pixels(folder: Path) -> Pixels | None:
    """Return what the preprocessor configuration in a model's folder says, or None if it has none.

    Raises:
        RecipeError: It cannot be read, or it is for pictures that are not square.
    """
    path = folder / PREPROCESSOR
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        size = _side(config)
        parts = [tuple(float(v) for v in config.get(name) or default) for name, default in _USUAL.items()]
        scale = float(config.get("rescale_factor") or 1 / 255)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RecipeError("cannot be read", where=str(path), got=str(error).splitlines()[0]) from error
    if size is None or any(len(part) != 3 for part in parts) or abs(scale * 255 - 1) > 1e-3:
        raise RecipeError(
            "these pictures cannot be made of the scenes",
            where=str(path),
            expected="square pictures of three channels, scaled to 0..1, then mean and std",
        )
    mean, std = parts if config.get("do_normalize", True) else ((0.0,) * 3, (1.0,) * 3)
    return Pixels(size, mean, std)


_USUAL = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}


def _side(config: Mapping[str, Any]) -> int | None:
    """Return the side of the pictures; None if they are not square or their size is not given."""
    size = config.get("crop_size") if config.get("do_center_crop") else config.get("size")
    if isinstance(size, Mapping):
        sides = {int(size[key]) for key in ("height", "width", "shortest_edge") if key in size}
        return sides.pop() if len(sides) == 1 else None
    return None if size is None else int(size)
