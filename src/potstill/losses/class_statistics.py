"""The mean of a teacher's features for every class, in one piece or batch by batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from potstill.errors import InputError, ShapeError
from potstill.losses._common import check_classes, check_mask


class ClassMeanAccumulator:
    """Add up features by class over many batches, in float64; several processes each add their share.

    For targets that are statistics of the whole training set, such as the class means of ``nd_loss``. Feed it the
    teacher in evaluation mode on data without augmentation, and true labels, not the teacher's guesses.

    Args:
        num_classes: C.

    Raises:
        InputError: num_classes below 1.

    Source:
        As for ``nd_loss``. The authors round to four decimals and augment; here neither is done, so that a second pass
        gives the same means.

    Example:
        >>> import torch
        >>> seen = ClassMeanAccumulator(2)
        >>> seen.update(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
        >>> seen.update(torch.tensor([[3.0, 2.0]]), torch.tensor([1]))
        >>> means, counts = seen.finalize()
        >>> means.tolist(), counts.tolist()
        ([[0.0, 0.0], [2.0, 1.0]], [0, 2])
    """

    def __init__(self, num_classes: int):
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise InputError(
                "no number of classes", where="ClassMeanAccumulator", expected="1 or more", got=num_classes
            )
        self.num_classes = num_classes
        self._sums: Tensor | None = None  # [C, D], float64
        self._counts: Tensor | None = None  # [C]
        self._dtype = torch.float32

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor, mask: Tensor | None = None) -> None:
        """Add one batch.

        Args:
            features: ``(N, D)``.
            labels: Integers ``(N,)`` in [0, C).
            mask: True at rows that count, ``(N,)``; None = all.

        Raises:
            InputError: features not floating point; a label that counts is outside [0, C); mask not bool.
            ShapeError: not two axes, another D than before; labels or the mask do not fit.
        """
        where = "ClassMeanAccumulator"
        if not features.is_floating_point():
            raise InputError("features are not floating point", where=where, got=features.dtype)
        width = "D" if self._sums is None else self._sums.shape[1]
        if features.ndim != 2 or width not in ("D", features.shape[1]):
            raise ShapeError("features do not fit", where=where, expected=f"(N, {width})", got=list(features.shape))
        check_mask(mask, features.shape[:1], where, "(N,)")
        labels = check_classes(labels, mask, features.shape[:1], self.num_classes, where)
        if mask is not None:
            features, labels = features[mask], labels[mask]
        if self._sums is None:
            self._sums = features.new_zeros(self.num_classes, features.shape[1], dtype=torch.float64)
            self._counts = labels.new_zeros(self.num_classes)
        self._dtype = torch.promote_types(self._dtype, features.dtype)
        self._sums.index_add_(0, labels, features.double())
        self._counts.index_add_(0, labels, torch.ones_like(labels))

    def finalize(self, *, over_ranks: bool = True) -> tuple[Tensor, Tensor]:
        """Return means ``(C, D)`` and counts ``(C,)`` over all batches of all processes.

        A class that never came has the mean 0 and the count 0. Means are float32, or float64 if features were.

        Args:
            over_ranks: Add up the shares of several processes, every one of which then has to call this; False where
                each has seen everything.

        Raises:
            InputError: nothing was added.
        """
        if self._sums is None:
            raise InputError("there is no mean of nothing", where="ClassMeanAccumulator", hint="Call update first.")
        sums, counts = self._sums.clone(), self._counts.clone()
        if over_ranks and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
            dist.all_reduce(counts)
        return (sums / counts.clamp_min(1).unsqueeze(1)).to(self._dtype), counts


def class_means(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Average the features of every class.

    For features that fit into memory; ``ClassMeanAccumulator`` takes them batch by batch.

    Args:
        features: ``(N, D)``.
        labels: Integers ``(N,)`` in [0, num_classes).
        num_classes: C.

    Returns:
        Means ``(C, D)``, in units of the features, and counts ``(C,)``; a class without rows has 0 in both.

    Raises:
        InputError: features not floating point; a label outside [0, C); num_classes below 1.
        ShapeError: not two axes; labels do not fit.

    Source:
        As for ``nd_loss``.

    Example:
        >>> import torch
        >>> means, counts = class_means(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), 3)
        >>> means.flatten().tolist(), counts.tolist()
        ([2.0, 5.0, 0.0], [2, 1, 0])
    """
    seen = ClassMeanAccumulator(num_classes)
    seen.update(features, labels)
    return seen.finalize()
