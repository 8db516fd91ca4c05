"""Logits that are not computed yet: hidden states and the output head that would make them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import InputError, ShapeError


@dataclass(frozen=True, eq=False)
class LazyLogits:
    """Hidden states and an output head, in place of the logits ``cap(scale * (hidden @ weight.T + bias))``.

    For the losses of ``potstill.losses.fused``. Where V is small, or every logit is read anyway, plain logits are
    simpler and as good.

    Attributes:
        hidden: Input of the head, ``(..., D)``, with at least one leading axis.
        weight: ``[V, D]``, tied to the embeddings or not.
        bias: ``[V]`` or None.
        scale: Factor on the product, as Cohere and Granite have.
        softcap: c of c · tanh(logit / c), as Gemma 2 has; None = no cap.
        vocab: Keep only the first n words; softmax runs over these.

    Raises:
        InputError: A tensor is not floating point, or the cap is not above 0.
        ShapeError: Head and hidden states do not fit, or there are no n words.

    Example:
        >>> import torch
        >>> lazy = LazyLogits(torch.ones(2, 3, 4), torch.ones(10, 4))
        >>> lazy.shape, lazy.whole()[0, 0, 0].item()
        (torch.Size([2, 3, 10]), 4.0)
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    vocab: int | None = None

    def __post_init__(self):
        for name in ("hidden", "weight", "bias"):
            x = getattr(self, name)
            if x is not None and not x.is_floating_point():
                raise InputError(f"{name} is not floating point", where="LazyLogits", got=x.dtype)
        if self.weight.ndim != 2 or self.hidden.ndim < 2 or self.hidden.shape[-1] != self.weight.shape[1]:
            raise ShapeError(
                "hidden states and output head do not fit",
                where="LazyLogits",
                expected="hidden (..., T, D), weight [V, D]",
                got=f"hidden {list(self.hidden.shape)}, weight {list(self.weight.shape)}",
            )
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            expected = f"[{self.weight.shape[0]}]"
            raise ShapeError("the bias does not fit", where="LazyLogits", expected=expected, got=list(self.bias.shape))
        if self.vocab is not None and not 1 <= self.vocab <= self.weight.shape[0]:
            raise ShapeError(
                "the vocabulary slice does not fit",
                where="LazyLogits.vocab",
                expected=f"1 to {self.weight.shape[0]}",
                got=self.vocab,
            )
        if self.softcap is not None and not self.softcap > 0:
            raise InputError(
                "the cap does not fit", where="LazyLogits.softcap", expected="a number above 0", got=self.softcap
            )

    @property
    def shape(self) -> torch.Size:
        """Of the logits: (..., V)."""
        return torch.Size([*self.hidden.shape[:-1], self.vocab or self.weight.shape[0]])

    @property
    def ndim(self) -> int:
        """Axes of the logits."""
        return self.hidden.ndim

    @property
    def device(self) -> torch.device:
        """Where the hidden states are."""
        return self.hidden.device

    @property
    def dtype(self) -> torch.dtype:
        """In which the product with the head is computed: as the head itself would, autocast included."""
        dtype = torch.promote_types(self.hidden.dtype, self.weight.dtype)
        kind = self.device.type
        is_cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        return torch.get_autocast_dtype(kind) if is_cast and dtype != torch.float64 else dtype

    def __getitem__(self, index: Any) -> LazyLogits:
        """Pick positions by an index of the leading axes; a vocabulary slice is ``vocab``."""
        return replace(self, hidden=self.hidden[index])

    def detach(self) -> LazyLogits:
        """Return the same without a graph."""
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, hidden=self.hidden.detach(), weight=self.weight.detach(), bias=bias)

    def to(self, device: torch.device | str) -> LazyLogits:
        """Return a copy on another device, the head too."""
        bias = None if self.bias is None else self.bias.to(device)
        return replace(self, hidden=self.hidden.to(device), weight=self.weight.to(device), bias=bias)

    def whole(self) -> Tensor:
        """Compute all logits, ``(..., V)``, with a graph: for tests, and where they are few."""
        dtype, n = self.dtype, self.shape[-1]
        bias = None if self.bias is None else self.bias[:n].to(dtype)
        logits = F.linear(self.hidden.to(dtype), self.weight[:n].to(dtype), bias)
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)
