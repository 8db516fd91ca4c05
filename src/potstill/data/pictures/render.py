"""From drawings to pictures: placed, turned, coloured, all rows of a batch at once.

A drawing is a stack of premultiplied colour channels with their coverage on top, so it can lie on any background.
Random numbers come in as uniform ones, a column for each choice; nothing here draws any.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch.nn import functional as F

ODD_STYLES = ("inverted", "blurred", "grey", "faded")
WORDS = 16  # columns of uniform numbers that ``extra_look`` reads
_GREY = (0.299, 0.587, 0.114)
# By augmentation: largest shift (share of the picture's side), turn (degrees), scale (factor), change of brightness,
# of contrast and of saturation.
_RANGES = {"light": (0.06, 8.0, 1.1, 0.08, 1.15, 1.2), "strong": (0.14, 20.0, 1.35, 0.2, 1.5, 1.8)}


@dataclass
class Look:
    """How each of B drawings is shown; every field is float32 ``[B]``, ``ground`` ``[B, C]``.

    Attributes:
        scale: Side of the drawing as a share of the picture's.
        across, down: Its centre, -1 to 1 from edge to edge.
        turn: Radians.
        mirror: 1 or -1.
        brightness: Added to the colours, which lie in 0 to 1.
        contrast, saturation: Factors.
        ground: Colour of the background.
    """

    scale: torch.Tensor
    across: torch.Tensor
    down: torch.Tensor
    turn: torch.Tensor
    mirror: torch.Tensor
    brightness: torch.Tensor
    contrast: torch.Tensor
    saturation: torch.Tensor
    ground: torch.Tensor

    @classmethod
    def plain(cls, rows: int, channels: int) -> Look:
        """Return drawings as they are, on black."""
        zero, one = torch.zeros(rows), torch.ones(rows)
        return cls(one, zero, zero, zero, one, zero, one, one, torch.zeros(rows, channels))

    def take(self, rows: torch.Tensor) -> Look:
        """Return some of the rows."""
        return Look(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def emoji_look(words: np.ndarray) -> Look:
    """Return a place, a turn, colours and a background for each row of uniform numbers, ``[B, WORDS]``."""
    u = torch.from_numpy(words.astype(np.float32))
    scale = 0.65 + 0.35 * u[:, 0]
    room = 1 - 0.85 * scale  # a drawing may lose its margin at the edge, not more
    return Look(
        scale=scale,
        across=room * (2 * u[:, 1] - 1),
        down=room * (2 * u[:, 2] - 1),
        turn=np.pi / 12 * (2 * u[:, 3] - 1),
        mirror=torch.where(u[:, 4] < 0.5, 1.0, -1.0),
        brightness=0.1 * (2 * u[:, 5] - 1),
        contrast=0.8 + 0.4 * u[:, 6],
        saturation=0.7 + 0.6 * u[:, 7],
        ground=u[:, 8:11].clone(),
    )


def extra_look(look: Look, words: np.ndarray, augment: str, *, may_mirror: bool, may_colour: bool) -> Look:
    """Return the look with an augmentation on top of it, by ``[B, WORDS]`` uniform numbers.

    Args:
        look: The look of each sample, which is always the same.
        words: The choices of this view and epoch.
        augment: "light" or "strong"; strong also gives half of the rows another background.
        may_mirror: Whether a picture keeps its meaning in a mirror.
        may_colour: Whether there are colours to change.
    """
    shift, turn, scale, brightness, contrast, saturation = _RANGES[augment]
    u = torch.from_numpy(words.astype(np.float32))
    signed = 2 * u - 1
    ground = look.ground
    if augment == "strong" and may_colour:
        ground = torch.where(u[:, 8:9] < 0.5, u[:, 9 : 9 + ground.shape[1]], ground)
    return Look(
        scale=look.scale * scale ** signed[:, 0],
        across=look.across + 2 * shift * signed[:, 1],
        down=look.down + 2 * shift * signed[:, 2],
        turn=look.turn + np.pi / 180 * turn * signed[:, 3],
        mirror=look.mirror * torch.where(u[:, 4] < 0.5, -1.0, 1.0) if may_mirror else look.mirror,
        brightness=look.brightness + brightness * signed[:, 5],
        contrast=look.contrast * contrast ** signed[:, 6],
        saturation=look.saturation * saturation ** signed[:, 7] if may_colour else look.saturation,
        ground=ground,
    )


def paint(drawings: torch.Tensor, look: Look, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pictures in 0 to 1, float32 ``[B, C, size, size]``, and the drawing's coverage ``[B, size, size]``.

    Args:
        drawings: uint8 ``[B, C + 1, S, S]``: C premultiplied channels and the coverage.
        look: How they are shown.
        size: Side of the pictures in pixels.
    """
    places = (2 * torch.arange(size, dtype=torch.float32) + 1) / size - 1
    x = places.view(1, 1, size) - look.across.view(-1, 1, 1)  # [B, 1, W]
    y = places.view(1, size, 1) - look.down.view(-1, 1, 1)  # [B, H, 1]
    cos = (look.turn.cos() / look.scale).view(-1, 1, 1)
    sin = (look.turn.sin() / look.scale).view(-1, 1, 1)
    u = look.mirror.view(-1, 1, 1) * (cos * x + sin * y)
    grid = torch.stack([u, cos * y - sin * x], -1)  # [B, H, W, 2]
    layers = F.grid_sample(drawings.float().div_(255), grid, mode="bilinear", align_corners=False)
    colours, cover = layers[:, :-1], layers[:, -1:]
    if colours.shape[1] == 3:
        grey = sum(weight * colours[:, i : i + 1] for i, weight in enumerate(_GREY))
        colours = grey + look.saturation.view(-1, 1, 1, 1) * (colours - grey)
    contrast, brightness = look.contrast.view(-1, 1, 1, 1), look.brightness.view(-1, 1, 1, 1)
    colours = contrast * colours + (brightness + 0.5 * (1 - contrast)) * cover
    colours = torch.minimum(colours.clamp_min(0), cover)
    return colours + (1 - cover) * look.ground[:, :, None, None], cover[:, 0]


def hide_squares(pictures: torch.Tensor, words: np.ndarray) -> torch.Tensor:
    """Return the pictures with a grey square, a third of the side, on half of them."""
    u, size = torch.from_numpy(words.astype(np.float32)), pictures.shape[-1]
    side = max(1, round(size / 3))
    start = (u[:, 1:3] * (size - side + 1)).floor()
    places = torch.arange(size, dtype=torch.float32)
    down, across = ((places >= s[:, None]) & (places < s[:, None] + side) for s in (start[:, 0], start[:, 1]))
    hidden = down[:, :, None] & across[:, None, :] & (u[:, 0] < 0.5)[:, None, None]
    return pictures.masked_fill(hidden[:, None], 0.5)


def odd_style(pictures: torch.Tensor, style: str) -> torch.Tensor:
    """Return pictures ``[B, C, H, W]`` in one of ``ODD_STYLES``."""
    if style == "inverted":
        return 1 - pictures
    if style == "blurred":
        width = 2 * max(1, pictures.shape[-1] // 12) + 1
        return F.avg_pool2d(pictures, width, 1, width // 2, count_include_pad=False)
    if style == "faded":
        return 0.5 + 0.3 * (pictures - 0.5)
    # Without colour; a picture that has none is cut to black and white.
    if pictures.shape[1] == 1:
        return (pictures > 0.5).float()
    grey = sum(weight * pictures[:, i : i + 1] for i, weight in enumerate(_GREY))
    return grey.expand_as(pictures).clone()
