"""The directions along which LELP splits a class of the teacher into pseudo-classes, fitted on its embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from potstill.errors import InputError, IntegrityError, ShapeError
from potstill.losses._common import without_autocast

# Below this share of the largest, a singular value of the head and the spread of a class count as 0.
TINY = 1e-10


@dataclass(frozen=True, eq=False)
class LELPBasis:
    """Where the classes of a teacher lie in its embedding space, and in which directions they spread most.

    Attributes:
        mean: Mean embedding of every class, behind the projector, ``(C, D)``.
        directions: S orthonormal directions of every class, ``(C, D, S)``.
        scale: Root mean square of a class's rows along its directions, ``(C,)``; above 0.
        null_projector: Symmetric, ``(D, D)``; takes out what the teacher's logits already say. None = nothing is.
    """

    mean: Tensor
    directions: Tensor
    scale: Tensor
    null_projector: Tensor | None = None

    def save(self, path: str | Path) -> Path:
        """Write the basis as a safetensors file and return its path."""
        from safetensors.torch import save_file

        fields = {name: value.cpu().contiguous() for name, value in vars(self).items() if value is not None}
        save_file(fields, str(path), metadata={"format": "potstill.lelp"})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> LELPBasis:
        """Read what ``save`` wrote; a file that holds something else is an ``IntegrityError``."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return cls(**load_file(str(path)))
        except (OSError, SafetensorError, TypeError) as error:
            raise IntegrityError("holds no basis of LELP", where=str(path), got=str(error)) from error


class LELPStatistics:
    """Number, mean and scatter of every class, gathered batch by batch in float64.

    For embeddings that do not fit into memory together: C x D x D numbers are kept instead of N x D.

    Args:
        num_classes: C.
        width: D.
    """

    def __init__(self, num_classes: int, width: int):
        if num_classes < 1 or width < 1:
            raise InputError("no such statistics", where="LELPStatistics", got=f"C = {num_classes}, D = {width}")
        self.count = torch.zeros(num_classes, dtype=torch.float64)
        self.mean = torch.zeros(num_classes, width, dtype=torch.float64)
        self.scatter = torch.zeros(num_classes, width, width, dtype=torch.float64)

    @torch.no_grad()
    def update(self, embeddings: Tensor, class_ids: Tensor) -> None:
        """Take in a batch: ``embeddings (N, D)`` and their classes ``(N,)``."""
        C, D = self.mean.shape
        x = _checked(embeddings, class_ids, C, "LELPStatistics")
        if x.shape[1] != D:
            raise ShapeError("embeddings of another width", where="LELPStatistics", expected=D, got=x.shape[1])
        if self.count.device != x.device:
            self.count, self.mean, self.scatter = (t.to(x.device) for t in (self.count, self.mean, self.scatter))
        for c in class_ids.unique().tolist():
            rows = x[class_ids == c]
            self._merge(c, len(rows), rows.mean(0), _scatter(rows))

    def merge(self, other: LELPStatistics) -> None:
        """Take in what was gathered elsewhere, by another process for instance."""
        for c in other.count.nonzero().flatten().tolist():
            self._merge(c, other.count[c], other.mean[c].to(self.mean.device), other.scatter[c].to(self.mean.device))

    def _merge(self, c: int, n: Tensor | int, mean: Tensor, scatter: Tensor) -> None:
        # Means are merged by their difference: the plain sum of squares would lose the digits of a far-off class.
        total = self.count[c] + n
        gap = mean - self.mean[c]
        self.scatter[c] += scatter + torch.outer(gap, gap) * (self.count[c] * n / total)
        self.mean[c] += gap * (n / total)
        self.count[c] = total

    @torch.no_grad()
    def fit(
        self,
        num_subclasses: int,
        *,
        head_weight: Tensor | None = None,
        rotate: bool = True,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> LELPBasis:
        """Return the basis that ``fit_lelp`` finds in the same rows; its arguments and errors."""
        C, D = self.mean.shape
        space, projector = _space(head_weight, D, self.mean.device)
        _check_sizes(self.count, num_subclasses, space.shape[1])
        found = []
        for c in range(C):
            values, vectors = torch.linalg.eigh(space.T @ self.scatter[c] @ space)  # rising
            found.append((space @ vectors.flip(-1)[:, :num_subclasses], values.flip(-1)[:num_subclasses]))
        spread = self.scatter.diagonal(dim1=-2, dim2=-1).sum(-1) / self.count
        size = (self.mean.square().sum(-1) + spread).sqrt()
        return _basis(self.mean, self.count, found, size, projector, rotate, seed, dtype)


@torch.no_grad()
def fit_lelp(
    embeddings: Tensor,
    class_ids: Tensor,
    num_classes: int,
    num_subclasses: int,
    *,
    head_weight: Tensor | None = None,
    rotate: bool = True,
    seed: int = 0,
) -> LELPBasis:
    """Find, inside every class, the directions in which the teacher's embeddings spread most.

    Once, before training, on inputs that are not augmented. Needs no labels: the teacher's own decision serves as the
    class. Worth it for two to five classes, where the teacher's probabilities hardly say more than its decision. For
    embeddings that do not fit into memory there is ``LELPStatistics``.

    Args:
        embeddings: What goes into the teacher's output layer, ``(N, D)``.
        class_ids: Class of every row, integers ``(N,)`` in [0, C): the teacher's argmax, or labels.
        num_classes: C.
        num_subclasses: S, 2 to 16; 1 leaves plain distillation. Less than the rows of any class, and at most D less
            the rank of ``head_weight``.
        head_weight: Weight of the teacher's output layer, ``(C, D)``: what it sees is taken out, because the class
            probabilities carry it already. None = nothing is taken out.
        rotate: Turn the directions of a class at random among themselves, so that each carries as much variance on
            average. False keeps them sorted by variance.
        seed: Seed of that rotation; the global generator is left alone.

    Returns:
        The basis, in float32, or float64 for float64 embeddings.

    Raises:
        InputError: NaN or Inf among the embeddings; class ids that are no integers of [0, C); S below 1 or too large;
            a class with at most S rows, or without any spread.
        ShapeError: embeddings, class ids or the head do not fit.

    Source:
        "Linear Projections of Teacher Embeddings for Few-Class Distillation", arXiv 2409.20449, section 3. The sign of
        a direction (its largest entry is positive) and the common scale of a class, which makes ``beta`` free of
        units, are ours.

    Example:
        >>> import torch
        >>> x = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> basis = fit_lelp(x, torch.zeros(4, dtype=torch.long), 1, 1, rotate=False)
        >>> basis.directions[0].flatten().abs().tolist(), round(basis.scale.item(), 4)
        ([1.0, 0.0], 1.4142)
    """
    x = _checked(embeddings, class_ids, num_classes, "fit_lelp")
    space, projector = _space(head_weight, x.shape[1], x.device)
    count = torch.bincount(class_ids, minlength=num_classes)
    _check_sizes(count, num_subclasses, space.shape[1])
    mean = torch.stack([x[class_ids == c].mean(0) for c in range(num_classes)])
    found = []
    for c in range(num_classes):
        # Inside the space that is left, so that even directions without variance stay in it.
        _, values, vectors = torch.linalg.svd((x[class_ids == c] - mean[c]) @ space, full_matrices=False)
        found.append((space @ vectors[:num_subclasses].T, values[:num_subclasses].square()))
    size = torch.stack([x[class_ids == c].square().sum(-1).mean().sqrt() for c in range(num_classes)])
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    return _basis(mean, count, found, size, projector, rotate, seed, dtype)


def _checked(embeddings: Tensor, class_ids: Tensor, num_classes: int, where: str) -> Tensor:
    """Return the embeddings in float64."""
    if embeddings.ndim != 2 or class_ids.shape != embeddings.shape[:1]:
        raise ShapeError(
            "embeddings and class ids do not fit",
            where=where,
            expected="(N, D) and (N,)",
            got=f"{list(embeddings.shape)} and {list(class_ids.shape)}",
        )
    if not embeddings.is_floating_point():
        raise InputError("embeddings are not floating point", where=where, got=embeddings.dtype)
    if class_ids.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8):
        raise InputError("class ids are no integers", where=where, got=class_ids.dtype)
    if not torch.isfinite(embeddings).all():
        raise InputError("embeddings are not finite", where=where, hint="Look at the teacher, or its precision.")
    if len(class_ids) and (int(class_ids.min()) < 0 or int(class_ids.max()) >= num_classes):
        bad = class_ids[(class_ids < 0) | (class_ids >= num_classes)][0].item()
        raise InputError("no such class", where=where, expected=f"0 to {num_classes - 1}", got=bad)
    return embeddings.detach().double()


def _scatter(rows: Tensor) -> Tensor:
    rows = rows - rows.mean(0)
    with without_autocast(rows):
        return rows.T @ rows


def _space(head_weight: Tensor | None, D: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return an orthonormal basis ``(D, R)`` of what the head does not see, and the projector onto it."""
    if head_weight is None:
        return torch.eye(D, dtype=torch.float64, device=device), None
    if head_weight.ndim != 2 or head_weight.shape[1] != D:
        raise ShapeError(
            "the head does not fit", where="head_weight", expected=f"(C, {D})", got=list(head_weight.shape)
        )
    if not torch.isfinite(head_weight).all():
        raise InputError("the head is not finite", where="head_weight")
    _, values, vectors = torch.linalg.svd(head_weight.detach().to(device, torch.float64))
    rank = int((values > TINY * values.max()).sum()) if values.numel() else 0
    space = vectors[rank:].T
    return space, space @ space.T


def _check_sizes(count: Tensor, S: int, room: int) -> None:
    if isinstance(S, bool) or not isinstance(S, int) or S < 1:
        raise InputError("no such number of subclasses", where="num_subclasses", expected="at least 1", got=S)
    if S > room:  # noqa: SIM300 - no constant
        raise InputError(
            "there are not that many directions",
            where="num_subclasses",
            expected=f"at most {room}: the width of the embeddings less the rank of the head",
            got=S,
        )
    few = (count <= S).nonzero().flatten()
    if len(few):
        c = int(few[0])
        raise InputError(
            f"class {c} has too few examples",
            where="class_ids",
            expected=f"more than num_subclasses = {S}",
            got=int(count[c]),
            hint="Fit on more data, or ask for fewer subclasses.",
        )


def _basis(
    mean: Tensor,
    count: Tensor,
    found: list[tuple[Tensor, Tensor]],
    size: Tensor,
    projector: Tensor | None,
    rotate: bool,
    seed: int,
    dtype: torch.dtype,
) -> LELPBasis:
    """Put the directions of the classes and their sums of squares into one basis; ``size`` is that of a usual row."""
    directions = torch.stack([vectors for vectors, _ in found])  # (C, D, S)
    S = directions.shape[-1]
    largest = directions.abs().argmax(1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    scale = (torch.stack([squares for _, squares in found]).clamp_min(0).mean(1) / count).sqrt()
    flat = (scale <= TINY * size).nonzero().flatten()
    if len(flat):
        raise InputError(
            f"class {int(flat[0])} has no spread: all its embeddings are the same",
            where="embeddings",
            hint="Take an earlier layer of the teacher, or null_space off.",
        )
    if rotate:
        directions = directions @ _rotations(len(found), S, seed).to(directions.device)
    centre = mean if projector is None else mean @ projector
    fields = [x.to(dtype) for x in (centre, directions, scale)]
    return LELPBasis(*fields, None if projector is None else projector.to(dtype))


def _rotations(C: int, S: int, seed: int) -> Tensor:
    """Return one rotation for each class, even over all orthogonal matrices, ``(C, S, S)``."""
    draws = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(C, S, S, generator=draws, dtype=torch.float64))
    # Without the signs of R's diagonal the result would depend on a convention of the factorisation.
    return q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
