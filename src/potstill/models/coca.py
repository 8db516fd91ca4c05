"""CoCa, contrastive captioner: one model that embeds, captions and answers, after Yu et al. 2022 (arXiv 2205.01917).

::

    pixels ─► image_encoder ─► image_pooler ─┬─► image_embeds
                                             └─► memory ──────┐
    tokens ─► text_decoder ─┬─► text_embeds (CLS token)       ▼
                            └─► token states ─► multimodal_decoder ─┬─► lm_head ─► caption_logits
                                                                    └─► task_heads ─► task_logits
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, EncoderDecoderCache, GenerationMixin, PreTrainedModel, initialization
from transformers.utils import ModelOutput

from potstill.errors import InputError
from potstill.models.coca_config import CocaConfig
from potstill.models.coca_inputs import BATCH_KEYS_NOT_READ, check_images, check_labels, check_targets, check_text
from potstill.models.coca_layers import CocaPooler, last_valid
from potstill.models.coca_losses import info_nce, mean_cross_entropy
from potstill.models.coca_parts import CocaImageEncoder, CocaImagePooler, CocaMultimodalDecoder, CocaTextDecoder

__all__ = ["BATCH_KEYS_NOT_READ", "CocaConfig", "CocaModel", "CocaOutput"]

_MAX_LOGIT_SCALE = 100.0


@dataclass
class CocaOutput(ModelOutput):
    """What ``CocaModel`` returns; absent parts are None.

    Attributes:
        loss: Weighted sum of ``losses``; only with labels.
        caption_logits: Scores of the next token at each position, ``[B, T, V]``.
        task_logits: Scores of each task head, ``{task: [B, classes]}``.
        image_embeds: Embedding of each row's first picture, length 1, fp32, ``[B, E]``.
        text_embeds: Embedding of each row's text, length 1, fp32, ``[B, E]``; only with the CLS token.
        logit_scale: Inverse temperature of the contrast, fp32, at most 100.
        losses: The terms before weighting: ``caption``, ``contrastive`` and one per task.
        last_hidden_state: Normed output of the multimodal decoder, input of ``lm_head`` and heads, ``[B, T, D]``.
        memory: Pooled image tokens of all slots, ``[B, I·Q, D]``.
        memory_mask: True at memory of present pictures, ``[B, I·Q]``; None = all.
    """

    loss: Tensor | None = None
    caption_logits: Tensor | None = None
    task_logits: dict[str, Tensor] | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    logit_scale: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    last_hidden_state: Tensor | None = None
    memory: Tensor | None = None
    memory_mask: Tensor | None = None

    @property
    def logits(self) -> Tensor | None:
        """The caption logits, under the name that ``generate`` reads."""
        return self.caption_logits


class CocaModel(PreTrainedModel, GenerationMixin):
    """Image encoder, unimodal text decoder and multimodal decoder with contrast, caption and task heads.

    Module paths that taps and recipes use: ``image_encoder.blocks[i]``, ``text_decoder.blocks[i]``,
    ``multimodal_decoder.blocks[i]``. Each returns its hidden states as one tensor.

    Example:
        >>> import torch
        >>> config = CocaConfig.small_scenes(vocab_size=32, task_labels={"vqa": ["yes", "no"]})
        >>> model = CocaModel(config).eval()
        >>> out = model(torch.zeros(2, 3, 48, 48), input_ids=torch.ones(2, 5, dtype=torch.long))
        >>> tuple(out.caption_logits.shape), tuple(out.task_logits["vqa"].shape)
        ((2, 5, 32), (2, 2))
    """

    config_class = CocaConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ("CocaBlock", "CocaMultimodalBlock", "CocaPooler")
    memory_attention = "image_pooler.caption.attn"  # what makes the memory of the patches, for those who follow maps
    accepts_loss_kwargs = False  # transformers.Trainer would pass num_items_in_batch into **labels
    _supports_sdpa = True
    _supports_attention_backend = True
    _tied_weights_keys = {"lm_head.weight": "text_decoder.token_embedding.weight"}  # noqa: RUF012

    def __init__(self, config: CocaConfig):
        super().__init__(config)
        self.image_encoder = CocaImageEncoder(config)
        self.image_pooler = CocaImagePooler(config)
        shape = (config.max_images, config.text_width)
        self.slot_embedding = nn.Parameter(torch.empty(shape)) if config.max_images > 1 else None
        self.text_decoder = CocaTextDecoder(config)
        self.multimodal_decoder = CocaMultimodalDecoder(config)
        self.lm_head = nn.Linear(config.text_width, config.vocab_size, bias=False)
        heads = {task: nn.Linear(config.text_width, len(labels)) for task, labels in config.task_labels.items()}
        self.task_heads = nn.ModuleDict(heads)
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.text_decoder.token_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.text_decoder.token_embedding = value

    def get_output_embeddings(self) -> nn.Module:
        """Return the caption head."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the caption head."""
        self.lm_head = value

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Give every parameter its start: weights by fan-in, the last layer of each residual branch by depth too."""
        config, init = self.config, initialization
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            depth = getattr(module, "residual_depth", None)
            init.normal_(module.weight, std=(module.in_features * (2 * depth if depth else 1)) ** -0.5)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, CocaPooler):
            init.normal_(module.query, std=1.0)
        elif isinstance(module, CocaImageEncoder | CocaTextDecoder):
            init.normal_(module.positions, std=config.initializer_range)
            if module.cls_token is not None:
                init.normal_(module.cls_token, std=config.initializer_range)
        elif module is self:
            init.constant_(self.logit_scale, config.logit_scale_init)
            if self.slot_embedding is not None:
                init.normal_(self.slot_embedding, std=config.initializer_range)

    def encode_images(
        self, pixel_values: Tensor, image_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Encode the pictures that are present, once each.

        Args:
            pixel_values: ``[B, 3, H, W]`` or ``[B, I, 3, H, W]``, normalised to [-1, 1].
            image_mask: True where a picture is present, ``[B, I]``; None = all. Absent pictures are not encoded.

        Returns:
            Memory ``[B, I·Q, D]``, memory mask ``[B, I·Q]`` (None = all present), and the embedding of each row's
            first picture, length 1, fp32, ``[B, E]``.

        Raises:
            ShapeError: Wrong number of dimensions, slots, channels or pixels, or a row without its first picture.
        """
        pixel_values, image_mask = check_images(self.config, pixel_values, image_mask)
        B, slots = pixel_values.shape[:2]
        pixels = pixel_values.flatten(0, 1).to(self.image_pooler.projection.weight.dtype)
        memory, embeds = self.image_pooler(
            self.image_encoder(pixels if image_mask is None else pixels[image_mask.flatten()])
        )
        memory_mask = None
        if image_mask is not None:
            embeds = embeds[(image_mask.flatten().cumsum(0) - 1).view(B, slots)[:, 0]]
            full = memory.new_zeros(B * slots, *memory.shape[1:])
            memory = full.masked_scatter(image_mask.view(-1, 1, 1), memory)
            memory_mask = image_mask.repeat_interleave(memory.shape[1], dim=1)
        else:
            embeds = embeds.view(B, slots, -1)[:, 0]
        memory = memory.view(B, slots, *memory.shape[1:])
        if self.slot_embedding is not None:
            memory = memory + self.slot_embedding[:slots, None]
        return memory.flatten(1, 2), memory_mask, F.normalize(embeds.float(), dim=-1)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        image_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        caption_labels: Tensor | None = None,
        return_contrastive: bool | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        return_dict: bool = True,
        **labels: Tensor,
    ) -> CocaOutput | tuple:
        """Run whatever the inputs allow: pictures alone, text alone, or both.

        Args:
            pixel_values: Pictures ``[B, 3, H, W]`` or ``[B, I, 3, H, W]``, normalised to [-1, 1].
            image_mask: True where a picture is present, ``[B, I]``; None = all. The first slot must be present.
            input_ids: Tokens ``[B, T]``; caption rows start with BOS and have no EOS.
            attention_mask: True or 1 at valid tokens, ``[B, T]``; None = all. Padding on the right, or on the left
                for generation.
            caption_labels: The token to predict *at* each position (already shifted), -100 elsewhere, ``[B, T]``.
            return_contrastive: Append the CLS token and return ``text_embeds``. None = if there are
                ``caption_labels`` and ``contrastive_weight`` is not 0. With it, the blocks of the text decoder see
                T + 1 positions; pass False where taps expect T.
            memory: Pooled image tokens from ``encode_images`` instead of ``pixel_values``; then there are no
                ``image_embeds`` and no contrastive loss.
            memory_mask: The mask that belongs to ``memory``.
            past_key_values: Keys and values of the tokens before ``input_ids``, and of ``memory``; extended in place.
                ``attention_mask`` then covers the tokens before, too.
            return_dict: False returns the parts that are present as a tuple.
            labels: ``<task>_labels``, class index per row, -100 = not a row of this task, ``[B]``. Keys in
                ``BATCH_KEYS_NOT_READ`` are ignored so that a whole batch can be passed; any other is an error.

        Returns:
            CocaOutput. ``loss`` = ``caption_weight``·cross entropy per caption token + ``contrastive_weight``·InfoNCE
            over the caption rows + cross entropy per row of each task; nats. Terms are means over what counts in
            this batch. Under several ranks each contrasts with its own rows only.

        Raises:
            ShapeError: Inputs that do not fit the configuration or each other.
            InputError: Labels of an unknown task, an unknown key, or no input at all.
        """
        check_labels(self.config, labels)
        if memory is None and pixel_values is None and input_ids is None:
            raise InputError("nothing to do", where="CocaModel", expected="pixel_values, memory or input_ids")
        parts: dict[str, Any] = {"logit_scale": self.logit_scale.float().exp().clamp(max=_MAX_LOGIT_SCALE)}
        if memory is None and pixel_values is not None:
            memory, memory_mask, parts["image_embeds"] = self.encode_images(pixel_values, image_mask)
        parts |= {"memory": memory, "memory_mask": memory_mask}
        if input_ids is not None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            check_text(input_ids, attention_mask, memory, past)
            if past and attention_mask is None:
                attention_mask = input_ids.new_ones(len(input_ids), past + input_ids.shape[1])
            if return_contrastive is None:
                return_contrastive = caption_labels is not None and self.config.contrastive_weight > 0
            states, embeds = self.text_decoder(
                input_ids, attention_mask, has_cls=return_contrastive, past_key_values=past_key_values
            )
            if return_contrastive:
                parts["text_embeds"] = F.normalize(embeds.float(), dim=-1)
            if memory is not None:
                hidden_states = self.multimodal_decoder(states, memory, attention_mask, memory_mask, past_key_values)
                last = last_valid(hidden_states, attention_mask)
                parts["last_hidden_state"] = hidden_states
                parts["caption_logits"] = self.lm_head(hidden_states)
                parts["task_logits"] = {task: head(last) for task, head in self.task_heads.items()}
        parts |= self._losses(parts, caption_labels, labels)
        out = CocaOutput(**parts)
        return out if return_dict else out.to_tuple()

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        attention_mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the arguments of one step of ``generate``: the tokens that are new, and the memory made once."""
        new = input_ids if next_sequence_length is None else input_ids[:, -next_sequence_length:]
        inputs = {"input_ids": new, "attention_mask": attention_mask, "past_key_values": past_key_values}
        return {**inputs, "memory": memory, "memory_mask": memory_mask, "return_contrastive": False}

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor | None = None,
        image_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Write a caption, or go on with ``input_ids``; greedy, beam search and sampling as in transformers.

        Args:
            pixel_values: Pictures as in ``forward``; encoded once.
            image_mask: As in ``forward``.
            input_ids: Starts of the texts ``[B, T]``, padded on the left; None = BOS.
            kwargs: Whatever ``GenerationMixin.generate`` takes: ``max_new_tokens``, ``num_beams``, ``do_sample``, …
                ``use_cache=False`` decodes the whole text at every step.

        Returns:
            Token ids ``[B, T']`` including the start, or what ``return_dict_in_generate`` asks for.
        """
        if pixel_values is not None:
            kwargs["memory"], kwargs["memory_mask"], _ = self.encode_images(pixel_values, image_mask)
        if kwargs.get("memory") is None:
            raise InputError("nothing to describe", where="generate", expected="pixel_values or memory")
        if input_ids is None:
            shape = (len(kwargs["memory"]), 1)
            input_ids = torch.full(shape, self.config.bos_token_id, device=kwargs["memory"].device)
        if not {"max_length", "max_new_tokens", "generation_config"} & kwargs.keys():
            kwargs["max_length"] = self.config.max_text_length
        if kwargs.get("use_cache", True):
            kwargs.setdefault("past_key_values", EncoderDecoderCache(DynamicCache(), DynamicCache()))
        return super().generate(input_ids=input_ids, **kwargs)

    def _losses(self, parts: dict[str, Any], caption_labels: Tensor | None, labels: dict[str, Tensor]) -> dict:
        """Return ``losses`` and their weighted sum ``loss``, or nothing if there are no labels."""
        config, losses, weights = self.config, {}, {}
        if caption_labels is not None:
            logits = parts.get("caption_logits")
            check_targets("caption_labels", caption_labels, logits)
            losses["caption"] = mean_cross_entropy(logits.flatten(0, 1), caption_labels.flatten())
            weights["caption"] = config.caption_weight
            if config.contrastive_weight and "text_embeds" in parts and "image_embeds" in parts:
                rows = (caption_labels != -100).any(1)
                losses["contrastive"] = info_nce(
                    *(parts[k] for k in ("image_embeds", "text_embeds", "logit_scale")), rows
                )
                weights["contrastive"] = config.contrastive_weight
        for task in config.task_labels:
            target = labels.get(f"{task}_labels")
            if target is not None:
                logits = parts.get("task_logits", {}).get(task)
                check_targets(f"{task}_labels", target, logits)
                losses[task] = mean_cross_entropy(logits, target)
        if not losses:
            return {}
        return {"losses": losses, "loss": sum(weights.get(name, 1.0) * term for name, term in losses.items())}
