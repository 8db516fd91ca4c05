"""How pixels become tokens: the first layers of our own image models."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def build_stem(kind: str, channels: int, width: int, patch_size: int) -> nn.Module:
    """Return the layers from ``channels`` of a picture to ``width`` of its tokens, still on their grid.

    Args:
        kind: "conv", three 3×3 convolutions of stride 2 (an eighth of the size); else one convolution that makes each
            patch a token, without a bias: positions or a norm come behind it.
        channels: Of the picture.
        width: Of a token.
        patch_size: Side of a patch in pixels.
    """
    if kind != "conv":
        return nn.Conv2d(channels, width, patch_size, patch_size, bias=False)
    layers: list[nn.Module] = []
    between = [channels, max(width // 4, 8), max(width // 2, 8)]
    for before, after in pairwise(between):
        layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.GroupNorm(1, after), nn.GELU()]
    return nn.Sequential(*layers, nn.Conv2d(between[-1], width, 3, 2, 1))
