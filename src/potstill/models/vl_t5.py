"""VL-T5: a T5 whose encoder reads visual tokens behind the text, after Cho et al. 2021 (arXiv 2102.02779).

::

    pixels ─► visual (stem, positions, blocks) ─► visual tokens ─┐
    prompt ─► shared embedding ─────────────► text tokens ──┤ text first
                                                            ▼
                                  encoder ─► decoder ─► lm_head ─► logits

One departure: the paper's visual tokens are boxes of a detector with their region features; here they are the places of
a grid, from a convolutional stem or patches and a few blocks of their own, with learned row and column positions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration, initialization
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.models.t5.modeling_t5 import T5Attention, T5Block, T5LayerNorm

from potstill.errors import InputError, RecipeError, ShapeError
from potstill.models.stems import build_stem
from potstill.models.vl_t5_config import VLT5Config

__all__ = ["VLT5Config", "VLT5ForConditionalGeneration", "from_t5"]


class VLT5Attention(T5Attention):
    """The first self-attention of the encoder, which makes the position bias of all.

    The bias is T5's between text tokens and zero wherever a visual token asks or is asked, as in the paper: how far
    apart a word and a place stand in the sequence means nothing.
    """

    def compute_bias(self, query_length: int, key_length: int, *args: Any, **kwargs: Any) -> Tensor:
        """Return the bias ``[1, H, T + N, T + N]`` of T text and N visual tokens."""
        bias = super().compute_bias(query_length, key_length, *args, **kwargs)
        is_text = torch.arange(key_length, device=bias.device) < key_length - self.config.image_tokens
        return bias * (is_text[-query_length:, None] & is_text)


class VLT5Visual(nn.Module):
    """Pictures to visual tokens. ``block`` returns ``[B, N, D]`` first; ``final_layer_norm`` gives the tokens."""

    def __init__(self, config: VLT5Config):
        super().__init__()
        self.config, side = config, config.image_side
        self.stem = build_stem(config.stem, config.num_channels, config.d_model, config.patch_size)
        self.stem_norm = T5LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.rows = nn.Parameter(torch.empty(side, 1, config.d_model))
        self.columns = nn.Parameter(torch.empty(side, config.d_model))
        self.block = nn.ModuleList(T5Block(config, layer_idx=i) for i in range(config.visual_layers))
        self.final_layer_norm = T5LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the visual tokens ``[B, N, D]`` of pictures ``[B, C, H, W]``, row by row."""
        tokens = self.stem(pixel_values.to(self.columns.dtype)).flatten(2).transpose(1, 2)  # [B, N, D]
        hidden_states = self.dropout(self.stem_norm(tokens) + (self.rows + self.columns).flatten(0, 1))
        position_bias = None
        for block in self.block:
            # The bias is zero; handed on, it is made once, and checkpointing recomputes nothing but the block.
            hidden_states, position_bias = block(hidden_states, None, position_bias)[:2]
        return self.final_layer_norm(hidden_states)


class VLT5ForConditionalGeneration(T5ForConditionalGeneration):
    """T5 that reads a picture and a prompt and writes a text.

    Module paths that taps and recipes use: ``visual.block[i]``, ``encoder.block[i]``, ``decoder.block[i]``, and below
    them T5's ``layer[j]``. Encoder states are those of the T text tokens, then those of the N visual tokens.

    Example:
        >>> import torch
        >>> model = VLT5ForConditionalGeneration(VLT5Config.small_scenes(vocab_size=32)).eval()
        >>> out = model(torch.zeros(2, 3, 48, 48), torch.ones(2, 5, dtype=torch.long), labels=torch.ones(2, 3).long())
        >>> tuple(out.logits.shape), tuple(out.encoder_last_hidden_state.shape)
        ((2, 3, 32), (2, 41, 128))
    """

    config_class = VLT5Config
    config: VLT5Config
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    accepts_loss_kwargs = False

    def __init__(self, config: VLT5Config):
        super().__init__(config)
        encoder_config = self.encoder.config
        first = VLT5Attention(encoder_config, has_relative_attention_bias=True, layer_idx=0)
        self.encoder.block[0].layer[0].SelfAttention = first
        self.visual = VLT5Visual(encoder_config)
        self.post_init()

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: transformers 5.23 leaves out modules without parameters of their own in classes outside its package.

        T5 gives its projections their start in just such modules (attention, feed-forward); left out, they would keep
        a standard deviation of 1 instead of about 0.1.
        """
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Give every parameter its start: T5's own, convolutions by fan-in, positions half as large as their tokens."""
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            initialization.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, VLT5Visual):
            for positions in (module.rows, module.columns):
                initialization.normal_(positions, std=self.config.initializer_factor * 0.5**1.5)

    def encode(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        """Run the encoder.

        Args:
            pixel_values: Pictures, one a row, ``[B, C, H, W]``, normalised to [-1, 1].
            input_ids: Prompts ``[B, T]``, padded on either side.
            attention_mask: True or 1 at valid tokens, ``[B, T]``; None = all.
            kwargs: What T5's encoder takes, such as ``output_attentions``.

        Returns:
            The states of text and visual tokens, ``[B, T + N, D]``.

        Raises:
            ShapeError: Wrong number of dimensions, rows, channels or pixels.
        """
        self._check_inputs(pixel_values, input_ids)
        tokens = self.visual(pixel_values)
        embedded = torch.cat([self.shared(input_ids), tokens.to(self.shared.weight.dtype)], dim=1)  # [B, T + N, D]
        out = self.encoder(inputs_embeds=embedded, attention_mask=self._joint_mask(attention_mask), **kwargs)
        # T5 would read any other class by position, and take attentions for hidden states where it has no such.
        return BaseModelOutput(out.last_hidden_state, hidden_states=out.hidden_states, attentions=out.attentions)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Seq2SeqLMOutput | tuple:
        """Read a picture and a prompt, and score the tokens of a text.

        Args:
            pixel_values: As in ``encode``; with no prompt only the picture is read, to warm up ``visual``.
            input_ids: Prompts ``[B, T]``.
            attention_mask: True or 1 at valid tokens of the prompts, ``[B, T]``; None = all. Visual tokens all count.
            decoder_input_ids: Tokens the decoder reads ``[B, U]``; None = the labels, shifted by one behind
                ``config.decoder_start_token_id``.
            decoder_attention_mask: True or 1 at those that are valid; None = all: the decoder is causal, and
                padding on the right is read by nothing that counts.
            labels: The token to predict *at* each place, -100 = none, ``[B, U]``.
            encoder_outputs: From ``encode``, instead of a picture.
            past_key_values: Keys and values of the tokens before, as ``generate`` keeps them.
            use_cache: Return them.
            output_attentions: Return attention maps; with SDPA set ``attn_implementation="eager"``.
            output_hidden_states: Return the states of all layers.
            return_dict: False = a tuple.

        Returns:
            As T5's: ``logits`` ``[B, U, V]``; ``loss`` in nats, mean over the labels, if there are any. Of a picture
            alone only ``encoder_last_hidden_state``: the visual tokens ``[B, N, D]``.

        Raises:
            InputError: Nothing to read, or nothing to write.
            ShapeError: Inputs that do not fit the configuration or each other.
        """
        wanted = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        wanted = {key: value for key, value in wanted.items() if value is not None}
        if encoder_outputs is None:
            if pixel_values is None:
                raise InputError("no picture is given", where="VLT5", expected="pixel_values or encoder_outputs")
            if input_ids is None:
                self._check_inputs(pixel_values, None)
                out = Seq2SeqLMOutput(encoder_last_hidden_state=self.visual(pixel_values))
                return out.to_tuple() if return_dict is False else out
            encoder_outputs = self.encode(pixel_values, input_ids, attention_mask, **wanted)
        if labels is None and decoder_input_ids is None:
            raise InputError("nothing to write", where="VLT5", expected="labels or decoder_input_ids")
        return super().forward(
            attention_mask=self._joint_mask(attention_mask),
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            labels=labels,
            use_cache=use_cache,
            return_dict=return_dict,
            **wanted,
        )

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Write a text; greedy, beam search and sampling as in transformers. Picture and prompt are read once.

        Args:
            pixel_values: As in ``forward``.
            input_ids: Prompts ``[B, T]``.
            attention_mask: As in ``forward``.
            kwargs: Whatever ``GenerationMixin.generate`` takes: ``max_new_tokens``, ``num_beams``, ``encoder_outputs``…

        Returns:
            Token ids ``[B, U]``, the decoder's start token first, or what ``return_dict_in_generate`` asks for.
        """
        if kwargs.get("encoder_outputs") is None:
            if pixel_values is None or input_ids is None:
                raise InputError("nothing to read", where="generate", expected="pixel_values and input_ids")
            wanted = {k: kwargs[k] for k in ("output_attentions", "output_hidden_states") if k in kwargs}
            kwargs["encoder_outputs"] = self.encode(pixel_values, input_ids, attention_mask, **wanted)
        return super().generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def _joint_mask(self, attention_mask: Tensor | None) -> Tensor | None:
        if attention_mask is None:
            return None
        return torch.cat(
            [attention_mask, attention_mask.new_ones(len(attention_mask), self.config.image_tokens)], dim=1
        )

    def _check_inputs(self, pixel_values: Tensor, input_ids: Tensor | None) -> None:
        config = self.config
        shape = (config.num_channels, config.image_size, config.image_size)
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != shape:
            raise ShapeError(
                "pictures do not fit", where="pixel_values", expected=("B", *shape), got=tuple(pixel_values.shape)
            )
        if input_ids is not None and (input_ids.ndim != 2 or len(input_ids) != len(pixel_values)):
            raise ShapeError(
                "prompts do not fit the pictures",
                where="input_ids",
                expected=(len(pixel_values), "T"),
                got=tuple(input_ids.shape),
            )


def from_t5(name_or_path: str | Path, *, seed: int = 0, **fields: Any) -> VLT5ForConditionalGeneration:
    """Return a VL-T5 whose text part is a T5 checkpoint and whose visual part is new.

    Args:
        name_or_path: Folder or hub name of a T5 ("t5-base").
        seed: Seed of the visual part's start; the global generator is left as it was.
        fields: Fields of ``VLT5Config`` that T5 does not have: ``image_size``, ``stem``, … Others must be what the
            checkpoint says; ``vocab_size`` may be less.

    Raises:
        RecipeError: There is no such model, or it is no T5.
        InputError: A field is unknown or refused, or is one of T5's own with another value.
    """
    from potstill.models.load import load_model

    t5 = load_model(name_or_path, where="text_model")
    if type(t5) is not T5ForConditionalGeneration:
        raise RecipeError(
            "is no T5 that writes", where="text_model", expected="T5ForConditionalGeneration", got=type(t5).__name__
        )
    own = {name: getattr(t5.config, name) for name in T5Config.__annotations__ if name != "model_type"}
    own["decoder_start_token_id"] = getattr(t5.config, "decoder_start_token_id", None)
    # Checkpoints have a few more embeddings than their tokenizer has tokens.
    if own["vocab_size"] >= fields.get("vocab_size", 0):
        fields.pop("vocab_size", None)
    for name, value in fields.items():
        if name in own and own[name] != value:
            raise InputError("the checkpoint says otherwise", where=f"fields.{name}", expected=own[name], got=value)
    config = VLT5Config(**{**own, **fields, "tie_word_embeddings": t5.config.scale_decoder_outputs})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = VLT5ForConditionalGeneration(config)
    model.load_state_dict({**model.state_dict(), **t5.state_dict()})
    return model.eval()
