"""The parts of CoCa: image encoder, image poolers, text decoder, multimodal decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import EncoderDecoderCache

from potstill.errors import ShapeError
from potstill.models.coca_config import CocaConfig
from potstill.models.coca_layers import CocaBlock, CocaMultimodalBlock, CocaPooler, text_mask
from potstill.models.stems import build_stem


class CocaImageEncoder(nn.Module):
    """Vision transformer. ``blocks`` return ``[N, S, D]`` with S = ``config.image_tokens``."""

    def __init__(self, config: CocaConfig):
        super().__init__()
        width = config.image_width
        self.config = config
        self.stem = build_stem(config.stem, config.num_channels, width, config.patch_size)
        self.cls_token = nn.Parameter(torch.empty(width)) if config.image_cls_token else None
        self.positions = nn.Parameter(torch.empty(config.image_tokens, width))
        norm = nn.LayerNorm(width, config.layer_norm_eps)
        is_pre = config.layout == "open_clip"
        self.norm_pre = norm if is_pre else nn.Identity()
        self.blocks = nn.ModuleList(
            CocaBlock(
                config, width, config.image_heads, config.image_mlp_ratio, i, depth=config.image_layers, is_causal=False
            )
            for i in range(config.image_layers)
        )
        self.norm = nn.Identity() if is_pre else norm

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode N pictures ``[N, 3, H, W]`` as tokens ``[N, S, D]``."""
        tokens = self.stem(pixels).flatten(2).transpose(1, 2)  # [N, S, D]
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(len(tokens), 1, -1), tokens], dim=1)
        hidden_states = self.norm_pre(tokens + self.positions)
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return self.norm(hidden_states)


class CocaImagePooler(nn.Module):
    """Two attentional poolers: caption queries make the memory, one contrastive query makes the embedding."""

    def __init__(self, config: CocaConfig):
        super().__init__()
        width = config.text_width
        self.pooling = config.pooling
        queries = config.caption_queries + int(config.pooling == "shared")
        self.caption = CocaPooler(config, queries, width, config.image_width)
        self.norm = nn.LayerNorm(width, config.layer_norm_eps)
        if config.pooling != "shared":
            context_width = width if config.pooling == "cascade" else config.image_width
            self.contrast = CocaPooler(config, 1, width, context_width)
            self.norm_contrast = nn.LayerNorm(width, config.layer_norm_eps)
        self.projection = nn.Linear(width, config.embed_dim, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Pool image tokens ``[N, S, C]`` into memory ``[N, Q, D]`` and embeddings, not normalised, ``[N, E]``."""
        memory = self.norm(self.caption(tokens))
        if self.pooling == "shared":
            pooled, memory = memory[:, 0], memory[:, 1:]
        else:
            source = memory if self.pooling == "cascade" else tokens
            pooled = self.norm_contrast(self.contrast(source)[:, 0])
        return memory, self.projection(pooled)


class CocaTextDecoder(nn.Module):
    """Unimodal decoder: causal, never sees a picture.

    ``blocks`` return ``[B, T, D]``, or ``[B, T + 1, D]`` when a CLS token is appended for contrast: it stands last,
    reads every valid token, is read by none, so the first T positions are the same with and without it.
    """

    def __init__(self, config: CocaConfig):
        super().__init__()
        width = config.text_width
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positions = nn.Parameter(torch.empty(config.max_text_length, width))
        self.cls_token = nn.Parameter(torch.empty(width))
        self.blocks = nn.ModuleList(
            CocaBlock(
                config,
                width,
                config.text_heads,
                config.text_mlp_ratio,
                i,
                depth=config.num_hidden_layers,
                is_causal=True,
            )
            for i in range(config.text_layers)
        )
        self.norm_cls = nn.LayerNorm(width, config.layer_norm_eps)
        self.projection = nn.Linear(width, config.embed_dim, bias=False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        has_cls: bool = False,
        past_key_values: EncoderDecoderCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Decode tokens ``[B, T]``.

        Args:
            input_ids: Token ids.
            attention_mask: True or 1 at valid tokens, ``[B, T]``, or ``[B, S]`` with S - T tokens in the cache.
            has_cls: Append the CLS token.
            past_key_values: Keys and values of the tokens before these.

        Returns:
            Hidden states of the tokens ``[B, T, D]``, not normed, and the text embedding, not normalised,
            ``[B, E]``, or None without CLS.

        Raises:
            ShapeError: The text, with what is in the cache, exceeds ``config.max_text_length``.
        """
        T = input_ids.shape[1]
        hidden_states = self.token_embedding(input_ids) + self._positions(T, attention_mask)
        if has_cls:
            cls = self.cls_token.expand(len(hidden_states), 1, -1)
            hidden_states = torch.cat([hidden_states, cls], dim=1)  # [B, T + 1, D]
        mask = text_mask(attention_mask, T, has_cls=has_cls, layout=self.config.layout)
        for block in self.blocks:
            hidden_states = block(hidden_states, mask, past_key_values=past_key_values)
        if not has_cls:
            return hidden_states, None
        return hidden_states[:, :-1], self.projection(self.norm_cls(hidden_states[:, -1]))

    def _positions(self, T: int, attention_mask: Tensor | None) -> Tensor:
        end, longest = T if attention_mask is None else attention_mask.shape[1], self.config.max_text_length
        if end > longest:
            expected = f"at most {longest} tokens (max_text_length)"
            raise ShapeError("text is too long", where="input_ids", expected=expected, got=end)
        if attention_mask is None:
            return self.positions[:T]
        # Counted from the first valid token, so that padding on the left does not shift a text.
        start = attention_mask.to(torch.int8).argmax(1, keepdim=True)
        index = (torch.arange(end - T, end, device=start.device) - start).clamp(min=0)
        return self.positions[index]  # [B, T, D]


class CocaMultimodalDecoder(nn.Module):
    """Causal decoder on the unimodal text states that reads pooled image tokens; ``blocks`` return ``[B, T, D]``."""

    def __init__(self, config: CocaConfig):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(
            CocaMultimodalBlock(config, config.text_layers + i) for i in range(config.multimodal_layers)
        )
        self.norm = nn.LayerNorm(config.text_width, config.layer_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        memory: Tensor,
        attention_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
    ) -> Tensor:
        """Decode text states ``[B, T, D]`` with memory ``[B, S, D]``; both masks are True where valid."""
        mask = text_mask(attention_mask, hidden_states.shape[1], has_cls=False, layout=self.config.layout)
        keys = None if memory_mask is None else memory_mask[:, None, None]  # [B, 1, 1, S]
        for block in self.blocks:
            hidden_states = block(hidden_states, memory, mask, keys, past_key_values=past_key_values)
        return self.norm(hidden_states)
