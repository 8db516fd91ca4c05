"""Read attention maps out of a model while it computes attention as it always does (SDPA, flash).

Only the tapped modules compute a map, beside their output. No other module, and nothing of the model's own settings, is
touched: a tapped module gets a copy of its configuration that names our attention function, and its own back when the
tap is removed. Modules that do not look their attention up in the registry of transformers are read by hooks.
"""

from __future__ import annotations

import copy
import re
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from potstill.errors import InputError, RecipeError
from potstill.taps.attention_modules import READERS, reader_of

IMPLEMENTATION = "potstill_tap"
_CROSS = re.compile(r"cross|enc_?dec|encoder_attn", re.IGNORECASE)


class See(Protocol):
    """What is told of the calls of a tapped attention, if it wants to know."""

    def wants(self) -> bool:
        """Say whether the call under way is to be shown."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        scaling: float,
        position_bias: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> None:
        """Take queries ``[B, H, Q, d]``, keys ``[B, Hkv, K, d]`` and all that belongs to their scores."""


class Reading:
    """One tapped attention module; ``remove()`` leaves it as it was.

    Args:
        module: What ``find_attention`` found.
        see: Told of every call.
    """

    def __init__(self, module: nn.Module, see: See):
        self._handles: list[RemovableHandle] = []
        self.module, self.see, self.config = module, see, None
        reader = reader_of(module)
        if reader is not None:
            self._handles = reader.attach(module, see)
            return
        _register()
        self.config = module.config
        if getattr(self.config, "reading", None) is not None:
            raise InputError(
                "this attention is tapped already", where="taps", hint="Remove the first tap, or read both from it."
            )
        module.config = copy.copy(self.config)
        # Not by the setter, which would also reach into configurations that the copy shares with the model.
        module.config._attn_implementation_internal = IMPLEMENTATION
        module.config.reading = self

    def remove(self) -> None:
        """Take the tap off."""
        for handle in self._handles:
            handle.remove()
        if self.config is not None:
            self.module.config = self.config
        self._handles, self.config = [], None

    def remove_from(self, copied: nn.Module) -> None:
        """Take the tap off a deep copy of the model, which has it too."""
        for module in copied.modules():
            for handle in self._handles:
                module._forward_hooks.pop(handle.id, None)
                module._forward_pre_hooks.pop(handle.id, None)
            reading = getattr(getattr(module, "config", None), "reading", None)
            if reading is not None:
                module.config = copy.copy(module.config)
                module.config._attn_implementation_internal = reading.config._attn_implementation
                del module.config.reading

    def __deepcopy__(self, memo: dict[int, Any]) -> Reading:
        # A copied model carries this object in the copy of its configuration; it must not drag a second tap along.
        return self


def attention_kinds(model: nn.Module, path: str) -> set[str]:
    """Return which attention there is at or below a path: "self", "cross", both or none."""
    return {kind_by_name(n) for n, module in model.get_submodule(path).named_modules() if is_attention(module)}


def kind_by_name(name: str) -> str:
    """Return "cross" or "self", by what an attention module is called."""
    return "cross" if _CROSS.search(name) else "self"


def find_attention(model: nn.Module, path: str, kind: str | None = None, *, where: str = "taps") -> str:
    """Return the path of the one attention module at or below ``path``.

    Args:
        model: The model.
        path: An attention module, or a block that holds one of the wanted kind; "" = the model itself.
        kind: "self", "cross", or None = whichever there is.
        where: Recipe path for messages.

    Raises:
        RecipeError: There is none, or there are several.
    """
    root = model.get_submodule(path)
    if is_attention(root):
        return path
    found = [name for name, module in root.named_modules() if is_attention(module)]
    wanted = [n for n in found if kind in (None, kind_by_name(n))]
    if len(wanted) == 1:
        return f"{path}.{wanted[0]}" if path else wanted[0]
    what = f"{kind}-attention" if kind else "attention"
    raise RecipeError(
        f'there {"is no" if not wanted else "are several modules of"} {what} in "{path or type(model).__name__}"',
        where=where,
        expected="one attention module that can be read",
        got=", ".join(wanted or found) or type(root).__name__,
        hint="Name the module itself. Read are attention modules of transformers that look their function up in its "
        f"registry, nn.MultiheadAttention, and {', '.join(READERS)}.",
    )


def is_attention(module: nn.Module) -> bool:
    """True for a module whose attention can be read."""
    if reader_of(module) is not None:
        return True
    # Every attention module that uses the registry has both.
    return hasattr(getattr(module, "config", None), "_attn_implementation") and hasattr(module, "is_causal")


def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, _attend)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Compute the output as the model would without the tap, and let the tap see what it is computed from."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    reading: Reading = module.config.reading
    implementation = reading.config._attn_implementation
    for name in ("softcap", "s_aux", "cu_seq_lens_q"):
        if options.get(name) is not None and reading.see.wants():
            raise InputError(f'attention with "{name}" cannot be read', where=f"taps, {type(module).__name__}")
    # "eager" means a function of the model's own file, which is out of reach here; SDPA takes the same masks.
    name = "sdpa" if implementation in (None, "eager") else implementation
    result = ALL_ATTENTION_FUNCTIONS.get_interface(name, None)(module, query, key, value, attention_mask, **options)
    if reading.see.wants():
        scaling = options.get("scaling")
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        mask = _readable(module, query, key, attention_mask, options)
        reading.see(query, key, scaling, options.get("position_bias"), mask)
    return result


def _readable(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, options: dict[str, Any]
) -> Tensor | None:
    """Return the mask that broadcasts to the scores: what a missing mask, or one of flash attention, stands for."""
    if mask is not None and not isinstance(mask, Tensor):
        raise InputError(
            f"a mask of the kind {type(mask).__name__} cannot be read",
            where=f"taps, {type(module).__name__}",
            hint='Load the model with attn_implementation="sdpa".',
        )
    if mask is not None and mask.ndim == 4:
        return mask
    Q, K = query.shape[2], key.shape[2]
    is_causal = options.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if is_causal and Q > 1:
        allowed = torch.ones(Q, K, dtype=torch.bool, device=query.device).tril(K - Q)
        window = options.get("sliding_window")
        if mask is not None and window is not None:
            allowed = allowed.triu(K - Q - window + 1)
        allowed = allowed[None, None]
        return allowed if mask is None else allowed & mask[:, None, None, -K:].bool()
    return None if mask is None else mask[:, None, None, -K:].bool()


def pick_rows(
    rows: int, query: Tensor, position_bias: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return queries, bias and mask of ``rows`` query positions, evenly spaced from the first to the last."""
    Q = query.shape[2]
    if rows >= Q:
        return query, position_bias, mask
    chosen = row_numbers(Q, rows, query.device)

    def few(x: Tensor | None) -> Tensor | None:
        return x if x is None or x.shape[-2] == 1 else x[..., chosen, :]

    return query[:, :, chosen], few(position_bias), few(mask)


def row_numbers(Q: int, rows: int, device: torch.device | str = "cpu") -> Tensor:
    """Return which of ``Q`` query positions are read when only ``rows`` are."""
    return torch.linspace(0, Q - 1, min(rows, Q), device=device).round().long()
