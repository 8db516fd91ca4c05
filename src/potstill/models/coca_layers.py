"""Building blocks of CoCa: attention through the transformers registry, transformer blocks, pooler, masks.

Every block takes and returns one tensor of hidden states ``[B, T, D]``, so a forward hook on it needs no unpacking.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import EncoderDecoderCache
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from potstill.models.coca_config import CocaConfig


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Attention written out, softmax in fp32; the same contract as the functions in the transformers registry.

    Args:
        module: The attention module; its ``is_causal`` decides what no mask means.
        query: ``[B, H, T, d]``.
        key: ``[B, H, S, d]``.
        value: ``[B, H, S, d]``.
        attention_mask: Bool, True = may be read, or additive; broadcast to ``[B, H, T, S]``. None = everything,
            or everything up to the own position if the module is causal.
        scaling: Factor on the scores; None = ``d ** -0.5``.
        dropout: Share of attention weights dropped.
        kwargs: What other attention functions need; not used here.

    Returns:
        Output ``[B, T, H, d]`` and the weights before dropout, fp32, ``[B, H, T, S]``.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query @ key.transpose(-1, -2)).float() * scaling
    T, S = scores.shape[-2:]
    if attention_mask is None and module.is_causal and T > 1:
        attention_mask = torch.ones(T, S, dtype=torch.bool, device=query.device).tril(S - T)
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, float("-inf"))
        else:
            scores = scores + attention_mask
    weights = scores.softmax(-1)
    output = F.dropout(weights, dropout, module.training).to(value.dtype) @ value
    return output.transpose(1, 2).contiguous(), weights


class CocaAttention(nn.Module):
    """Multi-head attention; self-attention, or cross-attention if ``forward`` gets a ``context``.

    The function that computes it is looked up by ``config._attn_implementation`` at every call, so
    ``model.set_attn_implementation`` with a function of one's own takes effect at once.
    """

    def __init__(
        self,
        config: CocaConfig,
        width: int,
        heads: int,
        layer_idx: int,
        *,
        is_causal: bool = False,
        context_width: int | None = None,
    ):
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer_idx, is_causal
        self.num_heads, self.head_dim = heads, width // heads
        self.num_key_value_groups = 1
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(context_width or width, width)
        self.v_proj = nn.Linear(context_width or width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self,
        hidden_states: Tensor,
        context: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
    ) -> Tensor:
        """Return ``[B, T, D]``. ``context [B, S, C]`` is what is read; None = ``hidden_states`` itself.

        ``hidden_states`` may have batch size 1 with a larger ``context``: learned queries are projected once.
        With ``past_key_values``, self-attention appends to its keys and cross-attention computes them only once.
        """
        query = self._split(self.q_proj(hidden_states))
        key, value = self._keys(hidden_states, context, past_key_values)
        query = query.expand(key.shape[0], -1, -1, -1)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.config.attention_dropout if self.training else 0.0
        output, _ = attend(self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling)
        return self.out_proj(output.reshape(*output.shape[:2], -1))

    def _keys(
        self, hidden_states: Tensor, context: Tensor | None, past: EncoderDecoderCache | None
    ) -> tuple[Tensor, Tensor]:
        is_cross = context is not None
        if is_cross and past is not None and past.is_updated.get(self.layer_idx):
            layer = past.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values
        source = context if is_cross else hidden_states
        key, value = self._split(self.k_proj(source)), self._split(self.v_proj(source))
        if past is None:
            return key, value
        if is_cross:
            past.is_updated[self.layer_idx] = True
        cache = past.cross_attention_cache if is_cross else past.self_attention_cache
        return cache.update(key, value, self.layer_idx)

    def _split(self, states: Tensor) -> Tensor:
        return states.view(*states.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)  # [B, H, T, d]


class CocaMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: CocaConfig, width: int, ratio: float):
        super().__init__()
        self.fc1 = nn.Linear(width, round(width * ratio))
        self.act = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(round(width * ratio), width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map ``[B, T, D]`` to ``[B, T, D]``."""
        return self.fc2(self.act(self.fc1(hidden_states)))


class CocaBlock(GradientCheckpointingLayer):
    """Pre-norm self-attention and MLP: a block of the image encoder or of the text decoder."""

    def __init__(
        self, config: CocaConfig, width: int, heads: int, ratio: float, layer_idx: int, *, depth: int, is_causal: bool
    ):
        super().__init__()
        self.norm_self = nn.LayerNorm(width, config.layer_norm_eps)
        self.self_attn = CocaAttention(config, width, heads, layer_idx, is_causal=is_causal)
        self.norm_mlp = nn.LayerNorm(width, config.layer_norm_eps)
        self.mlp = CocaMLP(config, width, ratio)
        self.dropout = _dropout(config)
        _mark_last(depth, self.self_attn, self.mlp)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
    ) -> Tensor:
        """Map hidden states ``[B, T, D]`` to ``[B, T, D]``; ``attention_mask`` as in ``eager_attention``."""
        attended = self.self_attn(self.norm_self(hidden_states), None, attention_mask, past_key_values)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.norm_mlp(hidden_states)))


class CocaMultimodalBlock(GradientCheckpointingLayer):
    """Pre-norm causal self-attention, cross-attention to the pooled image tokens, MLP.

    In the ``"open_clip"`` layout there is a second MLP after the self-attention, and the memory is normed here.
    """

    def __init__(self, config: CocaConfig, layer_idx: int):
        super().__init__()
        width, heads, eps = config.text_width, config.text_heads, config.layer_norm_eps
        self.norm_self = nn.LayerNorm(width, eps)
        self.self_attn = CocaAttention(config, width, heads, layer_idx, is_causal=True)
        self.has_open_clip_layout = config.layout == "open_clip"
        if self.has_open_clip_layout:
            self.norm_self_mlp = nn.LayerNorm(width, eps)
            self.self_mlp = CocaMLP(config, width, config.text_mlp_ratio)
            self.norm_memory = nn.LayerNorm(width, eps)
            _mark_last(config.num_hidden_layers, self.self_mlp)
        self.norm_cross = nn.LayerNorm(width, eps)
        self.cross_attn = CocaAttention(config, width, heads, layer_idx)
        self.norm_mlp = nn.LayerNorm(width, eps)
        self.mlp = CocaMLP(config, width, config.text_mlp_ratio)
        self.dropout = _dropout(config)
        _mark_last(config.num_hidden_layers, self.self_attn, self.cross_attn, self.mlp)

    def forward(
        self,
        hidden_states: Tensor,
        memory: Tensor,
        attention_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
    ) -> Tensor:
        """Map hidden states ``[B, T, D]`` to ``[B, T, D]``, reading ``memory [B, S, D]`` under ``memory_mask``."""
        attended = self.self_attn(self.norm_self(hidden_states), None, attention_mask, past_key_values)
        hidden_states = hidden_states + self.dropout(attended)
        if self.has_open_clip_layout:
            hidden_states = hidden_states + self.dropout(self.self_mlp(self.norm_self_mlp(hidden_states)))
            memory = self.norm_memory(memory)
        attended = self.cross_attn(self.norm_cross(hidden_states), memory, memory_mask, past_key_values)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.norm_mlp(hidden_states)))


class CocaPooler(nn.Module):
    """Attentional pooling: learned queries read a sequence of any length by one cross-attention."""

    def __init__(self, config: CocaConfig, queries: int, width: int, context_width: int):
        super().__init__()
        self.query = nn.Parameter(torch.empty(queries, width))
        self.norm_query = nn.LayerNorm(width, config.layer_norm_eps)
        self.norm_context = nn.LayerNorm(context_width, config.layer_norm_eps)
        self.attn = CocaAttention(
            config, width, config.pooler_heads or config.text_heads, 0, context_width=context_width
        )

    def forward(self, context: Tensor) -> Tensor:
        """Pool ``[B, S, C]`` into ``[B, queries, D]``."""
        return self.attn(self.norm_query(self.query)[None], self.norm_context(context))


def text_mask(attention_mask: Tensor | None, T: int, *, has_cls: bool, layout: str) -> Tensor | None:
    """Say which positions a text position may read, as a bool mask for SDPA.

    A token reads the valid tokens before it and itself, so no row is empty and padding on either side never makes
    a NaN. The CLS position, if there is one, comes last and reads every valid token and itself; nothing reads it.
    In the ``"open_clip"`` layout the CLS reads key j if token j - 1 is valid, and key 0 always: what those
    checkpoints were trained with (default ``correct_cls_mask=False`` there), one position off.

    Args:
        attention_mask: True or 1 at valid tokens, ``[B, S]``; None = all valid.
        T: Number of tokens that read; the first S - T stand in a cache.
        has_cls: A CLS position follows the tokens.
        layout: ``CocaConfig.layout``.

    Returns:
        ``[B, 1, T, S]``, T and S counting the CLS, or None if plain causal attention says the same.
    """
    if attention_mask is None:
        return None
    valid = attention_mask.bool()
    past, S = valid.shape[1] - T, valid.shape[1] + int(has_cls)
    readable = F.pad(valid, (0, 1), value=True) if has_cls else valid  # [B, S]
    causal = torch.ones(S, S, dtype=torch.bool, device=valid.device).tril()
    mask = (readable[:, None] & causal) | torch.eye(S, dtype=torch.bool, device=valid.device)
    if has_cls and layout == "open_clip":
        mask[:, -1] = F.pad(valid, (1, 0), value=True)
    return mask[:, None, past:]


def last_valid(hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return the state at the last valid position of each row, ``[B, D]``; the first if a row has none."""
    if attention_mask is None:
        return hidden_states[:, -1]
    T = hidden_states.shape[1]
    index = (attention_mask[:, -T:].to(torch.long) * torch.arange(T, device=attention_mask.device)).argmax(1)
    return hidden_states[torch.arange(len(index), device=index.device), index]


def _dropout(config: CocaConfig) -> nn.Module:
    return nn.Dropout(config.dropout) if config.dropout else nn.Identity()


def _mark_last(depth: int, *branches: nn.Module) -> None:
    # Read by CocaModel._init_weights: what a branch adds to the residual stream starts smaller in a deep stack.
    for branch in branches:
        last = branch.out_proj if isinstance(branch, CocaAttention) else branch.fc2
        last.residual_depth = depth
