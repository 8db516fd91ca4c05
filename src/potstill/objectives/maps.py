"""Objectives on attention maps: a layer of the student is to attend as a layer of the teacher does."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from potstill.align.masks import token_mask
from potstill.errors import InputError, RecipeError, ShapeError
from potstill.losses import AttentionProjection, amad_loss, resize_attention
from potstill.objectives.base import Objective, Role, Seen, Where
from potstill.taps import Signal, Tap

Pair = tuple[str, str] | tuple[str, str, str]
KINDS = ("self", "cross")


class AttentionObjective(Objective):
    """A loss of attention maps, mean over pairs of layers and over samples.

    Args:
        name: Its name in logs.
        loss: A loss of maps: ``loss(student_attn, teacher_attn, *, query_mask, key_mask, reduction)``.
        pairs: (student layer, teacher layer, "self" or "cross"), or (student tap, teacher tap) in the text form of
            ``Tap``. At least one.
        mask: Batch key of the mask of query positions; None = all count. Keys need no mask: a model that masks its
            padding has zeros there.
        rows: Batch key of the mask of the maps' rows, where these are not the batch's (several pictures a row).
        resize: ``{from: [h, w], to: [h, w]}``: bring the teacher's maps from its patch grid to the student's.
        module: The module these layers belong to.
        weight: Factor in the loss.
        alpha: Name of an automatic factor that this objective shares, see ``Objective``.
        against: Whose size that factor aims at, see ``Objective``.
        options: Further keyword arguments of the loss.

    Raises:
        RecipeError: There is no pair, the loss is none of maps or takes no such option; when shapes are known, maps
            of another number of queries or keys.
    """

    role: Role = "hidden"

    def __init__(
        self,
        name: str,
        loss: Callable[..., torch.Tensor],
        pairs: Sequence[Pair],
        *,
        mask: str | None = None,
        rows: str | None = None,
        resize: Mapping[str, Sequence[int]] | None = None,
        module: str | None = None,
        weight: float = 1.0,
        alpha: str | None = None,
        against: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
    ):
        super().__init__(name, weight=weight, module=module, alpha=alpha, against=against)
        if not pairs:
            raise RecipeError("no layers to compare", where=name, hint="Give a layer map.")
        self.loss, self.loss_name, self.options = loss, loss.__name__, dict(options or {})
        self.mask, self.rows, self.resize = mask, rows, _grids(resize, name)
        self.pairs = [_taps_of(pair, f"{name}.pairs[{i}]") for i, pair in enumerate(pairs)]
        self.student_taps = tuple(dict.fromkeys(s for s, _ in self.pairs))
        self.teacher_taps = tuple(dict.fromkeys(t for _, t in self.pairs))
        self.on = ", ".join(self.student_taps)
        accepted = inspect.signature(loss).parameters
        if "query_mask" not in accepted:
            raise RecipeError(f'the loss "{self.loss_name}" is no loss of attention maps', where=name)
        unknown = sorted(self.options.keys() - accepted.keys())
        if unknown:
            raise RecipeError(f'the loss "{self.loss_name}" takes no "{unknown[0]}"', where=name)

    def build_part(self, student: Signal, teacher: Signal | None) -> nn.Module | None:
        """Check the shapes of the maps; return the projections of AMAD's "projected_kl", else None."""
        part = nn.ModuleDict()
        for i, (s, t) in enumerate(self.pairs):
            maps = student.tapped[s]
            shape_s, shape_t = maps.shape, self.resized(teacher.tapped[t], maps.shape).shape
            if (shape_s[0], *shape_s[2:]) != (shape_t[0], *shape_t[2:]):
                raise RecipeError(
                    f'"{s}" of the student and "{t}" of the teacher see different positions',
                    where=self.name,
                    expected=f"maps (B, H, Q, K) = {tuple(shape_t)} but for H",
                    got=tuple(shape_s),
                    hint="Tap layers with equal lengths; for pictures cut into other grids give resize.",
                )
            if self.options.get("variant") == "projected_kl":
                part[str(i)] = AttentionProjection(*shape_s[2:])
        return part if len(part) else None

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Count the samples."""
        return Where(rows=self.rows).count(batch)

    def total(self, seen: Seen, part: nn.Module | None) -> torch.Tensor:
        """Sum over samples of the mean over pairs."""
        values = []
        for i, (s, t) in enumerate(self.pairs):
            maps = seen.student.tapped[s]
            extra = {"projection": part[str(i)]} if part is not None else {}
            values.append(
                self.loss(
                    maps,
                    self.resized(seen.teacher.tapped[t], maps.shape),
                    query_mask=token_mask(seen.batch, self.mask, maps.shape[2]),
                    reduction="sum",
                    **extra,
                    **self.options,
                )
            )
        return torch.stack(values).mean()

    def resized(self, maps: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Bring maps of the teacher to the grid of the student's, of this shape, if ``resize`` says so."""
        if self.resize is None:
            return maps
        try:
            return resize_attention(maps, tuple(shape[2:]), grid=self.resize[0], to=self.resize[1])
        except ShapeError as error:
            raise error.at(f"{self.name}.resize") from None


class AMADObjective(AttentionObjective):
    """Attention Map Alignment Distillation: every teacher head teaches every student head, weighted by similarity.

    L = L_KD + alpha · L_AMAD; L_KD are other objectives of the same training. For students with fewer heads, or with
    heads in another order. With as many heads that do correspond (a student copied from the teacher) heads paired by
    number do as well.

    Args:
        kd_loss: The objectives of L_KD, or their names: what ``alpha="auto"`` is measured against.
        pairs: (student layer, teacher layer, "self" or "cross").
        alpha: A number, or "auto": mean of L_KD over mean of L_AMAD, over the first 50 steps, then frozen.
        name: Its name in logs.
        variant: "kl", "mse", "token_kl" or "projected_kl", see ``amad_loss``.
        tau: Temperature of the head alignment.
        head_reduction: "sum" over teacher heads, or "mean".
        eps: Floor of a probability inside the logarithm.
        options: ``mask``, ``rows``, ``resize``, ``module`` of ``AttentionObjective``.

    Source:
        Zhao et al., "No Head Left Behind", AAAI 2024; equation 15 for the sum. The rule for "auto" is ours.
    """

    def __init__(
        self,
        kd_loss: Objective | str | Sequence[Objective | str],
        pairs: Sequence[Pair],
        alpha: float | Literal["auto"] = "auto",
        *,
        name: str = "amad",
        variant: str = "kl",
        tau: float = 1.0,
        head_reduction: str = "sum",
        eps: float = 1e-12,
        **options: Any,
    ):
        is_auto = alpha == "auto"
        given = [kd_loss] if isinstance(kd_loss, Objective | str) else list(kd_loss)
        super().__init__(
            name,
            amad_loss,
            pairs,
            weight=1.0 if is_auto else alpha,
            alpha=name if is_auto else None,
            against=[o.name if isinstance(o, Objective) else o for o in given],
            options={"variant": variant, "tau": tau, "head_reduction": head_reduction, "eps": eps},
            **options,
        )


def _taps_of(pair: Pair, where: str) -> tuple[str, str]:
    if isinstance(pair, str) or len(pair) not in (2, 3) or not all(isinstance(p, str) for p in pair):
        raise RecipeError("is no pair of layers", where=where, expected='[student, teacher, "self"]', got=pair)
    kind = pair[2] if len(pair) == 3 else None
    if kind not in (None, *KINDS):
        raise RecipeError("no such attention", where=where, expected='"self" or "cross"', got=kind)
    side = "attention" if kind is None else f"{kind}_attention"
    student, teacher = (path if "@" in path else f"{path}@{side}" for path in pair[:2])
    for tap in (student, teacher):
        if not Tap.parse(tap, where).is_attention:
            raise RecipeError("is no tap of an attention map", where=where, got=tap)
    return student, teacher


def _grids(resize: Mapping[str, Sequence[int]] | None, name: str) -> tuple[tuple[int, int], tuple[int, int]] | None:
    if resize is None:
        return None
    if not isinstance(resize, Mapping) or set(resize) != {"from", "to"}:
        raise RecipeError("is no pair of grids", where=f"{name}.resize", expected="{from: [h, w], to: [h, w]}")
    grids = []
    for key in ("from", "to"):
        grid = resize[key]
        is_grid = isinstance(grid, list | tuple) and len(grid) == 2
        if not is_grid or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in grid):
            raise InputError("is no grid", where=f"{name}.resize.{key}", expected="[rows, columns]", got=grid)
        grids.append((grid[0], grid[1]))
    return grids[0], grids[1]
