"""Projectors: small trained maps from the student's width to the teacher's, dropped at export."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from potstill.errors import ShapeError
from potstill.registry import Registry

PROJECTORS: Registry[type[Projector]] = Registry("projector")


class Projector(nn.Module):
    """A trainable part that maps student features to the teacher's number of channels.

    Subclasses are built from the two channel counts and say, in ``channel_axis``, which axis they map.
    """

    channel_axis = -1

    def __init__(self, channels_s: int, channels_t: int):
        super().__init__()
        self.channels_s, self.channels_t = channels_s, channels_t

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map student features to the teacher's width; raises ``ShapeError`` if they are not as wide as planned."""
        if features.dim() <= (self.channel_axis if self.channel_axis >= 0 else 0):
            raise ShapeError(f"{type(self).__name__} cannot map features of shape {tuple(features.shape)}")
        if features.shape[self.channel_axis] != self.channels_s:
            raise ShapeError(
                f"{type(self).__name__} was built for {self.channels_s} student channels",
                got=f"features of shape {tuple(features.shape)}",
            )
        return self.project(features)

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """Map features whose width has been checked."""
        raise NotImplementedError


@PROJECTORS.register("linear")
class LinearProjector(Projector):
    """OPTIMA's W_l: one matrix ``weight`` of shape (D_t, D_s), no bias. Features (..., D_s) -> (..., D_t)."""

    def __init__(self, channels_s: int, channels_t: int):
        super().__init__(channels_s, channels_t)
        self.map = nn.Linear(channels_s, channels_t, bias=False)

    @property
    def weight(self) -> torch.Tensor:
        """The matrix, (D_t, D_s)."""
        return self.map.weight

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """Return ``features @ weight.T``."""
        return self.map(features)


@PROJECTORS.register("conv1x1")
class Conv1x1Projector(Projector):
    """FitNets' regressor for feature maps: a 1×1 convolution without bias. (B, C_s, H, W) -> (B, C_t, H, W)."""

    channel_axis = 1

    def __init__(self, channels_s: int, channels_t: int):
        super().__init__(channels_s, channels_t)
        self.map = nn.Conv2d(channels_s, channels_t, kernel_size=1, bias=False)

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """Convolve pixel by pixel."""
        if features.dim() != 4:
            raise ShapeError("conv1x1 maps (B, C, H, W)", got=f"shape {tuple(features.shape)}")
        return self.map(features)


@PROJECTORS.register("mlp")
class MlpProjector(Projector):
    """Two linear layers with GELU between, hidden as wide as the teacher. (..., D_s) -> (..., D_t).

    Freer than ``linear``: it can hide how far the student's own space is from the teacher's, so prefer ``linear``
    unless the spaces are known to differ by more than a rotation.
    """

    def __init__(self, channels_s: int, channels_t: int):
        super().__init__(channels_s, channels_t)
        self.layers = nn.Sequential(nn.Linear(channels_s, channels_t), nn.GELU(), nn.Linear(channels_t, channels_t))

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """Apply both layers."""
        return self.layers(features)


def build_projector(
    kind: str, shape_s: Sequence[int], shape_t: Sequence[int], *, seed: int = 0, where: str | None = None
) -> Projector | None:
    """Return the projector that makes student features of one shape comparable with the teacher's.

    Args:
        kind: A name in ``PROJECTORS``, ``"none"``, or ``"auto"``: nothing where the widths are equal, else
            ``conv1x1`` for (B, C, H, W) on both sides and ``linear`` for everything else.
        shape_s: Shape of the student's features, as probed on one batch.
        shape_t: Shape of the teacher's features.
        seed: Seed of the initial weights; the global random generator is left as it was.
        where: Recipe path, for messages.

    Returns:
        A fresh module on the CPU in fp32, or None if nothing is needed.

    Raises:
        RecipeError: if the kind is unknown.
        ShapeError: if the numbers of axes differ, the widths differ under ``"none"``, or (for conv1x1) the
            features are no maps.
    """
    shape_s, shape_t = tuple(shape_s), tuple(shape_t)
    if len(shape_s) != len(shape_t) or len(shape_s) < 2:
        raise ShapeError(
            "student and teacher features cannot be compared", where=where,
            expected="the same number of axes, at least 2", got=f"{shape_s} and {shape_t}",
        )  # fmt: skip
    is_map = len(shape_s) == 4
    if kind in ("auto", "none"):
        axis = 1 if is_map else -1
        if shape_s[axis] == shape_t[axis]:
            return None
        if kind == "none":
            raise ShapeError(
                f"the student is {shape_s[axis]} wide and the teacher {shape_t[axis]}, and no projector is asked for",
                where=where, hint='Set projector to "auto" or "linear".',
            )  # fmt: skip
        kind = "conv1x1" if is_map else "linear"
    projector = PROJECTORS.get(kind, where)
    axis = projector.channel_axis
    if axis == 1 and not is_map:
        raise ShapeError(
            f'projector "{kind}" maps (B, C, H, W)', where=where, got=f"features of shape {shape_s}",
            hint='Use "linear" for token features.',
        )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which reseeds accelerators for good
        return projector(shape_s[axis], shape_t[axis])
