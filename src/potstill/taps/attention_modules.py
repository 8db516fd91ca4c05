"""Attention modules that do not look their function up in the registry of transformers, and how to read each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from potstill.errors import InputError
from potstill.registry import Registry

Scores = tuple[Tensor, Tensor, float, Tensor | None, Tensor | None]
"""Queries ``[B, H, Q, d]``, keys ``[B, H, K, d]``, scaling, position bias, mask (bool with True = may be read, or
additive)."""


@dataclass(frozen=True)
class Reader:
    """How to read one class of attention modules.

    Attributes:
        scores: ``scores(module, seen, arguments)`` returns what the scores are made of.
        watches: Children whose outputs ``seen`` holds by name.
    """

    scores: Callable[[nn.Module, Mapping[str, Tensor], Mapping[str, Any]], Scores]
    watches: tuple[str, ...] = ()

    def attach(self, module: nn.Module, see: Any) -> list[RemovableHandle]:
        """Hook the module, so that ``see`` is told of the calls it wants; return the handles."""
        seen: dict[str, Tensor] = {}
        signature = inspect.signature(module.forward)

        def watch(name: str) -> Callable[..., None]:
            return lambda child, args, output: seen.__setitem__(name, output)

        def tell(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            if see.wants():
                see(*self.scores(module, seen, signature.bind(*args, **kwargs).arguments))
            seen.clear()

        handles = [module.get_submodule(name).register_forward_hook(watch(name)) for name in self.watches]
        return [*handles, module.register_forward_hook(tell, with_kwargs=True)]


READERS: Registry[Reader] = Registry("attention module")


def reader_of(module: nn.Module) -> Reader | None:
    """Return the reader for the class of a module or for one of its parents, or None."""
    names = [cls.__name__ for cls in type(module).__mro__]
    return next((READERS.get(name) for name in names if name in READERS), None)


def _heads(states: Tensor, size: int) -> Tensor:
    return states.unflatten(-1, (-1, size)).transpose(1, 2)


def _query_key(module: nn.Module, seen: Mapping[str, Tensor], mask: Tensor | None) -> Scores:
    size = module.attention_head_size
    if "key" not in seen or (mask is not None and mask.shape[-1] not in (1, seen["key"].shape[1])):
        raise InputError("attention with cached keys cannot be read", where=f"taps, {type(module).__name__}")
    return _heads(seen["query"], size), _heads(seen["key"], size), size**-0.5, None, mask


def _blip_text(module: nn.Module, seen: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Scores:
    is_cross = arguments.get("encoder_hidden_states") is not None
    return _query_key(module, seen, arguments.get("encoder_attention_mask" if is_cross else "attention_mask"))


def _blip_vision(module: nn.Module, seen: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Scores:
    query, key, _ = seen["qkv"].unflatten(-1, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return query, key, module.scale, None, None


def _masked(module: nn.Module, seen: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Scores:
    return _query_key(module, seen, arguments.get("attention_mask"))


def _torch_attention(module: nn.MultiheadAttention, seen: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Scores:
    if module.bias_k is not None or module.add_zero_attn:
        raise InputError("bias_k and add_zero_attn cannot be read", where="taps, MultiheadAttention")
    query, key = arguments["query"], arguments["key"]
    if query.ndim != 3:
        raise InputError("attention without a batch axis cannot be read", where="taps, MultiheadAttention")
    if not module.batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    E = module.embed_dim
    weights = module.in_proj_weight
    if weights is None:
        weight_q, weight_k = module.q_proj_weight, module.k_proj_weight
    else:
        weight_q, weight_k = weights[:E], weights[E : 2 * E]
    bias = module.in_proj_bias
    query = _heads(F.linear(query, weight_q, None if bias is None else bias[:E]), module.head_dim)
    key = _heads(F.linear(key, weight_k, None if bias is None else bias[E : 2 * E]), module.head_dim)
    return query, key, module.head_dim**-0.5, None, _torch_mask(query, key, arguments)


def _torch_mask(query: Tensor, key: Tensor, arguments: Mapping[str, Any]) -> Tensor | None:
    """Return both masks as one additive mask: here True means "may not be read"."""
    total = None
    for name in ("attn_mask", "key_padding_mask"):
        mask = arguments.get(name)
        if mask is None:
            continue
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(mask, torch.finfo(query.dtype).min)
        if name == "key_padding_mask":
            mask = mask[:, None, None]
        elif mask.ndim == 3:
            mask = mask.unflatten(0, (-1, query.shape[1]))
        total = mask if total is None else total + mask
    return total if total is None else total.clamp_min(torch.finfo(query.dtype).min)


READERS.register("BlipAttention")(Reader(_blip_vision, ("qkv",)))
READERS.register("BlipTextSelfAttention")(Reader(_blip_text, ("query", "key")))
for _name in ("ViltSelfAttention", "FlavaSelfAttention"):
    READERS.register(_name)(Reader(_masked, ("query", "key")))
READERS.register("MultiheadAttention")(Reader(_torch_attention))
