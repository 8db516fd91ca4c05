"""What is kept of a teacher's distribution over many classes, and which losses can be computed from that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from potstill.errors import InputError
from potstill.losses._common import check_choice, check_positive

MODES = ("tail", "renormalised", "sampled")
CACHED_LOSSES = ("kd_kl", "reverse_kl", "generalized_jsd", "tv_distance")
_OPTIONS = {
    "kd_kl": ("temperature", "scale_by_t2", "shared_vocab"),
    "reverse_kl": ("temperature", "scale_by_t2", "shared_vocab"),
    "generalized_jsd": ("beta", "temperature", "shared_vocab"),
    "tv_distance": ("temperature", "shared_vocab"),
}


@dataclass(frozen=True)
class TopK:
    """What is kept of a teacher's distribution over V classes: k of them, and the mass of all others.

    It stands where a tensor of logits ``(..., V)`` would: it has that ``shape``, and an index of the leading axes picks
    positions.

    Attributes:
        ids: The kept classes, ``(..., k)``, integers, all different where ``counts`` is None or above 0.
        log_probs: Log-probability of each at temperature 1, ``(..., k)``.
        tail: Log of the mass of all other classes by temperature, each ``(...)``; empty for drawn classes.
        vocab: V, the number of classes the teacher chose among.
        counts: How often each class was drawn, ``(..., k)``, 0 = the place is empty; None = the k most likely ones.
        mode: How a loss is to read it, see ``cached_loss``.
        logsumexp: Log of the sum of exp(logit) over all classes, ``(...)``, if it was kept.
    """

    ids: Tensor
    log_probs: Tensor
    tail: Mapping[float, Tensor]
    vocab: int
    counts: Tensor | None = None
    mode: str = "tail"
    logsumexp: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """The shape that the teacher's logits had."""
        return torch.Size([*self.ids.shape[:-1], self.vocab])

    @property
    def ndim(self) -> int:
        """The number of axes that the teacher's logits had."""
        return self.ids.ndim

    def __getitem__(self, index: Any) -> TopK:
        return self._each(lambda x: x[index])

    def to(self, device: torch.device | str) -> TopK:
        """Return a copy on another device."""
        return self._each(lambda x: x.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> TopK:
        return replace(
            self,
            ids=change(self.ids),
            log_probs=change(self.log_probs),
            tail={t: change(x) for t, x in self.tail.items()},
            counts=None if self.counts is None else change(self.counts),
            logsumexp=None if self.logsumexp is None else change(self.logsumexp),
        )


def check_cached(loss: str, mode: str, targets: TopK | None = None, *, temperature: float = 1.0, **rest: Any) -> None:
    """Refuse a loss that cannot be computed from such targets in such a way.

    Args:
        loss: Name of the loss.
        mode: "tail", "renormalised" or "sampled".
        targets: What was kept; None = only what holds for all.
        temperature: T.
        rest: Further options of the loss.

    Raises:
        InputError: says why not, and what would do.
    """
    where = "cached_loss"
    check_choice(mode, MODES, where, "mode")
    check_positive(temperature, where, "temperature")
    if loss not in CACHED_LOSSES:
        raise InputError(
            f'"{loss}" needs the teacher\'s logits of all classes',
            where=where,
            expected=", ".join(CACHED_LOSSES),
            hint="Keep all classes (k: 0 of the cache), or run the teacher live.",
        )
    unknown = sorted(rest.keys() - set(_OPTIONS[loss]))
    if unknown:
        raise InputError(
            f'"{loss}" has no "{unknown[0]}" from a cache', where=where, expected=", ".join(_OPTIONS[loss])
        )
    if mode == "sampled" and (loss != "kd_kl" or temperature != 1):
        raise InputError(
            "draws from the teacher estimate the forward KL at temperature 1 alone",
            where=where,
            expected='loss "kd_kl", temperature 1',
            got=f'loss "{loss}", temperature {temperature:g}',
            hint='Keep the most likely classes instead and read them as "tail".',
        )
    if mode == "renormalised" and loss == "reverse_kl":
        raise InputError(
            "reverse KL is infinite where a renormalised teacher has no mass",
            where=where,
            hint='Use mode "tail", or another loss.',
        )
    if targets is None:
        return
    if (targets.counts is not None) != (mode == "sampled"):
        kept = "classes that were drawn" if targets.counts is not None else "the most likely classes"
        fits = '"sampled"' if targets.counts is not None else '"tail" or "renormalised"'
        raise InputError(f"the targets are {kept}", where=where, expected=f"mode {fits}", got=mode)
    if mode == "tail" and float(temperature) not in targets.tail:
        raise InputError(
            "the mass of the tail is not known at this temperature, and that at another does not tell it",
            where=where,
            expected=f"temperature {', '.join(f'{t:g}' for t in sorted(targets.tail))}",
            got=temperature,
            hint='Build the cache with this temperature, or read it as "renormalised".',
        )


def student_log_probs(student: Any, ids: Tensor, temperature: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """Return the log-probabilities of some classes: all that a loss on kept classes asks of the student.

    Args:
        student: Logits ``(..., V)``, or ``LazyLogits``, which are never formed.
        ids: The classes, ``(..., k)``.
        temperature: T; the logits are divided by it.
        mask: True at positions that count, ``(...)``; lazy logits are not computed elsewhere.

    Returns:
        Nats, ``(..., k)``, float32 or better.
    """
    if not isinstance(student, Tensor):
        from potstill.losses.fused import token_log_probs  # which not every run needs

        return token_log_probs(student, ids, temperature=temperature, mask=mask).log_probs
    dtype = torch.promote_types(student.dtype, torch.float32)
    logits = student.to(dtype) if temperature == 1 else student.to(dtype) / temperature
    return logits.gather(-1, ids) - logits.logsumexp(-1, keepdim=True)
