"""The output head of a language model, taken apart so that losses can do without its logits.

    hidden ──► head ──► logits · scale ──► cap ──► outputs.logits

While a head rests, the model is run without its largest product; what would have gone into it is caught, and becomes
``LazyLogits`` for the losses of ``potstill.losses.fused``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import InputError
from potstill.losses.fused import LazyLogits
from potstill.taps.signal import lookup

# What models do to the product of head and hidden states, by the name in their configuration.
_MULTIPLIED, _DIVIDED = ("logit_scale",), ("logits_scaling",)
_CAPPED = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


class OutputHead:
    """The last matrix of a model, and what is done to its product.

    The weight is looked up when it is needed, so that training, tying, moving or sharding the model changes nothing.

    Args:
        model: Whose head it is.
        path: Of the head in the model.
        output: Name of the output it makes.
        scale: Factor on its product.
        softcap: c of c · tanh(logit / c); None = no cap.
    """

    def __init__(
        self,
        model: nn.Module,
        path: str,
        *,
        output: str = "logits",
        scale: float = 1.0,
        softcap: float | None = None,
    ):
        self.model, self.path, self.output, self.scale, self.softcap = model, path, output, scale, softcap

    @property
    def module(self) -> nn.Module:
        """The head itself."""
        return self.model.get_submodule(self.path)

    @property
    def vocab(self) -> int:
        """V, also while the weight is sharded."""
        return self.module.weight.shape[0]

    @contextmanager
    def resting(self) -> Iterator[list[Tensor]]:
        """Let the model run without its head; what yields holds afterwards what went into it.

        The head returns its input, so the output that bears its name holds no logits meanwhile.
        """
        caught: list[Tensor] = []

        def rest(hidden: Tensor) -> Tensor:
            caught.append(hidden)
            return hidden

        with _replaced(self.module, rest):
            yield caught

    def logits(self, caught: list[Tensor]) -> LazyLogits:
        """Return the logits of the pass in which the head rested.

        Raises:
            InputError: The head was not called exactly once.
        """
        if len(caught) != 1:
            raise InputError(
                "the output head was not called once", where=self.path, expected="1 call a pass", got=len(caught)
            )
        self._gather()
        module = self.module
        return LazyLogits(caught[0], module.weight, getattr(module, "bias", None), self.scale, self.softcap)

    def _gather(self) -> None:
        """Make the weight whole if FSDP2 split it: the innermost module that owns it let go of it after its pass.

        It is split again in the backward pass, with the rest of that module.
        """
        steps = self.path.split(".")
        for n in range(len(steps), -1, -1):
            owner = self.model.get_submodule(".".join(steps[:n]))
            if hasattr(owner, "unshard"):
                owner.unshard()
                return

    @torch.no_grad()
    def verify(self, inputs: Mapping[str, Any]) -> tuple[int, ...]:
        """Run the model once and refuse the head if the logits of the last position are not those of the model.

        Args:
            inputs: What the model is called with.

        Returns:
            The shape of all logits, (..., V).

        Raises:
            InputError: The model does more to its logits than is known here.
        """
        caught: list[Tensor] = []
        module = self.module
        whole = module.forward

        def of_last(hidden: Tensor) -> Tensor:
            caught.append(hidden)
            return whole(hidden[..., -1:, :])

        was_training = self.model.training
        self.model.eval()
        try:
            with _replaced(module, of_last):
                found = lookup(self.model(**inputs), self.output)
        finally:
            self.model.train(was_training)
        lazy = self.logits(caught)
        expected = LazyLogits(lazy.hidden[..., -1:, :], lazy.weight, lazy.bias, lazy.scale, lazy.softcap).whole()
        # In half precision the order in which scale and cap are rounded may differ.
        loose = 1e-4 if expected.dtype in (torch.float32, torch.float64) else 0.05
        if found.shape != expected.shape or not torch.allclose(
            found.float(), expected.float(), rtol=loose, atol=loose, equal_nan=True
        ):
            raise InputError(f"its {self.output} are more than the product with its output head", where=self.path)
        return tuple(lazy.shape)


def find_output_head(model: nn.Module, output: str = "logits") -> OutputHead:
    """Find the output head of a model, and what the model does to its product.

    Args:
        model: A transformers model, or one that has ``get_output_embeddings``. Tied weights are fine.
        output: Name of the output the head makes.

    Returns:
        The head. Whether it is all that stands between hidden states and logits is for ``OutputHead.verify`` to see.

    Raises:
        InputError: There is none, or none that could rest; says why.
    """
    name = type(model).__name__
    ask = getattr(model, "get_output_embeddings", None)
    head = None if ask is None else ask()
    if head is None:
        raise InputError(f"{name} has no output head over a vocabulary")
    path = next((path for path, module in model.named_modules() if module is head), None)
    if path is None or not isinstance(head, nn.Linear):
        raise InputError(f"the output head of {name} is a {type(head).__name__}, no linear layer")
    if hasattr(model, "final_logits_bias"):
        raise InputError(f"{name} adds final_logits_bias, a buffer beside its output head, to its logits")
    config = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    scale, softcap = 1.0, None
    for field in (*_MULTIPLIED, *_DIVIDED, *_CAPPED):
        value = getattr(config, field, None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            if field in _CAPPED:
                softcap = float(value)
            else:
                scale *= value if field in _MULTIPLIED else 1 / value
    return OutputHead(model, path, output=output, scale=scale, softcap=softcap)


@contextmanager
def _replaced(module: nn.Module, forward: Any) -> Iterator[None]:
    """Let a module do something else for a while; what hung on it before (of accelerate, say) comes back."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
