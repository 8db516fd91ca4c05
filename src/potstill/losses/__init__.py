"""Losses as pure functions of tensors, used like ``torch.nn.functional``.

Shared conventions (``docs/losses/baselines.md`` tells them at length):

- ``loss(student, teacher, *, ..., mask=None, reduction="mean")``; the teacher is detached by every function.
- Losses on attention maps (``docs/losses/attention.md``): ``loss(student_attn, teacher_attn, *, query_mask=None,
  key_mask=None, ...)``.
- ``mask`` is bool, True = the position counts. What stands at a masked position (NaN, Inf) reaches neither the value
  nor the gradient. Nothing left to count gives 0 with a graph.
- Statistics are float32, or float64 if an input is; autocast is switched off around matrix products.
- Values of divergences are in nats. Wrong input raises ``potstill.errors.InputError`` or its child ``ShapeError``.

Names are loaded on first use, so importing this package does not import torch.
"""

from typing import TYPE_CHECKING

from potstill._lazy import lazy_names

if TYPE_CHECKING:
    from potstill.losses._top_k import TopK
    from potstill.losses.attention_alignment import amad_loss
    from potstill.losses.attention_probabilities import attention_kl
    from potstill.losses.attention_projection import AttentionProjection
    from potstill.losses.attention_resizing import resize_attention
    from potstill.losses.averaged_heads import head_mean
    from potstill.losses.balanced_assignment import sinkhorn_knopp
    from potstill.losses.chunk_latents import alm_latents_loss
    from potstill.losses.class_relation import class_relation_kd
    from potstill.losses.class_statistics import ClassMeanAccumulator, class_means
    from potstill.losses.clipped_divergence import GatedTokens, dac_kl_loss, dac_kl_tokens
    from potstill.losses.correlation import dist_loss
    from potstill.losses.decoupled import dkd
    from potstill.losses.domain_distillation import DDKTerms, ddk_loss, ddk_terms
    from potstill.losses.ensemble_targets import ensemble_soft_target, meal_v2_similarity_loss
    from potstill.losses.feature_direction import kdpp_loss, nd_loss
    from potstill.losses.forward_kl import kd_kl
    from potstill.losses.fused import LazyLogits, Term, fused_loss, fused_terms, token_log_probs
    from potstill.losses.hints import hint_mse
    from potstill.losses.instance_contrast import instance_alignment
    from potstill.losses.jensen_shannon import generalized_jsd
    from potstill.losses.kernel_alignment import cka, cka_loss
    from potstill.losses.likelihood_matching import alm_loss, alm_loss_from_logprobs, chunk_logprobs
    from potstill.losses.minillm import MinillmReturns, minillm_returns, teacher_mixed_probs
    from potstill.losses.module_hidden import module_hidden_loss
    from potstill.losses.mutual_information import MIAlphaLoss, mi_alpha_bound
    from potstill.losses.open_vocabulary import (
        caption_contrastive_loss,
        vlm_align_loss,
        vlm_cls_loss,
        vlm_contrast_loss,
        vlm_mse_loss,
        vlm_ood_losses,
    )
    from potstill.losses.output_discriminator import OutputDiscriminator, meal_v2_discriminator_loss
    from potstill.losses.paired_heads import one_to_one_heads
    from potstill.losses.plackett_luce import pld_loss, pld_token_loss
    from potstill.losses.pseudo_class_basis import LELPBasis, LELPStatistics, fit_lelp
    from potstill.losses.pseudo_classes import lelp_class_logits, lelp_class_probs, lelp_loss, lelp_targets
    from potstill.losses.quantile_network import QuantileNet
    from potstill.losses.redundant_tokens import redundant_token_mask
    from potstill.losses.relations import minilm_relation
    from potstill.losses.response_correction import Correction, scrg_select
    from potstill.losses.reversed_kl import reverse_kl
    from potstill.losses.sinkhorn_distance import sinkhorn_kd_loss, sinkhorn_kd_token_loss
    from potstill.losses.skewed_kl import skew_kl, skew_reverse_kl
    from potstill.losses.span_interaction import span_correlation_loss, span_pairs
    from potstill.losses.spatial_attention import attention_transfer
    from potstill.losses.squeezed_heads import squeezing_heads
    from potstill.losses.style_mixing import mix_distribution
    from potstill.losses.swapped_prediction import swapped_prediction_loss
    from potstill.losses.token_chunks import SpecialToken, align_chunks
    from potstill.losses.token_graph import trg_global_loss, trg_inner_loss, trg_local_loss
    from potstill.losses.token_relations import token_relation_loss
    from potstill.losses.token_sampling import feature_map_to_tokens, sample_tokens, trg_temperature
    from potstill.losses.top_k_targets import cached_loss
    from potstill.losses.total_variation import tv_distance
    from potstill.losses.vocabulary_bytes import boundary_mask, token_bytes
    from potstill.losses.weighted_alignment import weighted_feature_alignment
    from potstill.losses.whitened_features import whitened_feature_loss

__all__ = [
    "AttentionProjection",
    "ClassMeanAccumulator",
    "Correction",
    "DDKTerms",
    "GatedTokens",
    "LELPBasis",
    "LELPStatistics",
    "LazyLogits",
    "MIAlphaLoss",
    "MinillmReturns",
    "OutputDiscriminator",
    "QuantileNet",
    "SpecialToken",
    "Term",
    "TopK",
    "align_chunks",
    "alm_latents_loss",
    "alm_loss",
    "alm_loss_from_logprobs",
    "amad_loss",
    "attention_kl",
    "attention_transfer",
    "boundary_mask",
    "cached_loss",
    "caption_contrastive_loss",
    "chunk_logprobs",
    "cka",
    "cka_loss",
    "class_means",
    "class_relation_kd",
    "dac_kl_loss",
    "dac_kl_tokens",
    "ddk_loss",
    "ddk_terms",
    "dist_loss",
    "dkd",
    "ensemble_soft_target",
    "feature_map_to_tokens",
    "fit_lelp",
    "fused_loss",
    "fused_terms",
    "generalized_jsd",
    "head_mean",
    "hint_mse",
    "instance_alignment",
    "kd_kl",
    "kdpp_loss",
    "lelp_class_logits",
    "lelp_class_probs",
    "lelp_loss",
    "lelp_targets",
    "meal_v2_discriminator_loss",
    "meal_v2_similarity_loss",
    "mi_alpha_bound",
    "minillm_returns",
    "minilm_relation",
    "mix_distribution",
    "module_hidden_loss",
    "nd_loss",
    "one_to_one_heads",
    "pld_loss",
    "pld_token_loss",
    "redundant_token_mask",
    "resize_attention",
    "reverse_kl",
    "sample_tokens",
    "scrg_select",
    "sinkhorn_kd_loss",
    "sinkhorn_kd_token_loss",
    "sinkhorn_knopp",
    "skew_kl",
    "skew_reverse_kl",
    "span_correlation_loss",
    "span_pairs",
    "squeezing_heads",
    "swapped_prediction_loss",
    "teacher_mixed_probs",
    "token_bytes",
    "token_log_probs",
    "token_relation_loss",
    "trg_global_loss",
    "trg_inner_loss",
    "trg_local_loss",
    "trg_temperature",
    "tv_distance",
    "vlm_align_loss",
    "vlm_cls_loss",
    "vlm_contrast_loss",
    "vlm_mse_loss",
    "vlm_ood_losses",
    "weighted_feature_alignment",
    "whitened_feature_loss",
]

# No file bears the name of a public function: importing such a file would hide the function behind the module.
_HOMES = {
    "AttentionProjection": "attention_projection",
    "ClassMeanAccumulator": "class_statistics",
    "Correction": "response_correction",
    "DDKTerms": "domain_distillation",
    "GatedTokens": "clipped_divergence",
    "LELPBasis": "pseudo_class_basis",
    "LELPStatistics": "pseudo_class_basis",
    "LazyLogits": "fused",
    "MIAlphaLoss": "mutual_information",
    "MinillmReturns": "minillm",
    "OutputDiscriminator": "output_discriminator",
    "QuantileNet": "quantile_network",
    "SpecialToken": "token_chunks",
    "TopK": "_top_k",
    "Term": "fused",
    "align_chunks": "token_chunks",
    "alm_latents_loss": "chunk_latents",
    "alm_loss": "likelihood_matching",
    "alm_loss_from_logprobs": "likelihood_matching",
    "amad_loss": "attention_alignment",
    "attention_kl": "attention_probabilities",
    "attention_transfer": "spatial_attention",
    "boundary_mask": "vocabulary_bytes",
    "cached_loss": "top_k_targets",
    "caption_contrastive_loss": "open_vocabulary",
    "chunk_logprobs": "likelihood_matching",
    "cka": "kernel_alignment",
    "cka_loss": "kernel_alignment",
    "class_means": "class_statistics",
    "class_relation_kd": "class_relation",
    "dac_kl_loss": "clipped_divergence",
    "dac_kl_tokens": "clipped_divergence",
    "ddk_loss": "domain_distillation",
    "ddk_terms": "domain_distillation",
    "dist_loss": "correlation",
    "dkd": "decoupled",
    "ensemble_soft_target": "ensemble_targets",
    "feature_map_to_tokens": "token_sampling",
    "fit_lelp": "pseudo_class_basis",
    "fused_loss": "fused",
    "fused_terms": "fused",
    "generalized_jsd": "jensen_shannon",
    "head_mean": "averaged_heads",
    "hint_mse": "hints",
    "instance_alignment": "instance_contrast",
    "kd_kl": "forward_kl",
    "kdpp_loss": "feature_direction",
    "lelp_class_logits": "pseudo_classes",
    "lelp_class_probs": "pseudo_classes",
    "lelp_loss": "pseudo_classes",
    "lelp_targets": "pseudo_classes",
    "meal_v2_discriminator_loss": "output_discriminator",
    "meal_v2_similarity_loss": "ensemble_targets",
    "mi_alpha_bound": "mutual_information",
    "minillm_returns": "minillm",
    "minilm_relation": "relations",
    "mix_distribution": "style_mixing",
    "module_hidden_loss": "module_hidden",
    "nd_loss": "feature_direction",
    "one_to_one_heads": "paired_heads",
    "pld_loss": "plackett_luce",
    "pld_token_loss": "plackett_luce",
    "redundant_token_mask": "redundant_tokens",
    "resize_attention": "attention_resizing",
    "reverse_kl": "reversed_kl",
    "sample_tokens": "token_sampling",
    "scrg_select": "response_correction",
    "sinkhorn_kd_loss": "sinkhorn_distance",
    "sinkhorn_kd_token_loss": "sinkhorn_distance",
    "sinkhorn_knopp": "balanced_assignment",
    "span_correlation_loss": "span_interaction",
    "span_pairs": "span_interaction",
    "skew_kl": "skewed_kl",
    "skew_reverse_kl": "skewed_kl",
    "squeezing_heads": "squeezed_heads",
    "swapped_prediction_loss": "swapped_prediction",
    "teacher_mixed_probs": "minillm",
    "token_relation_loss": "token_relations",
    "trg_global_loss": "token_graph",
    "trg_inner_loss": "token_graph",
    "trg_local_loss": "token_graph",
    "trg_temperature": "token_sampling",
    "token_log_probs": "fused",
    "token_bytes": "vocabulary_bytes",
    "tv_distance": "total_variation",
    "vlm_align_loss": "open_vocabulary",
    "vlm_cls_loss": "open_vocabulary",
    "vlm_contrast_loss": "open_vocabulary",
    "vlm_mse_loss": "open_vocabulary",
    "vlm_ood_losses": "open_vocabulary",
    "weighted_feature_alignment": "weighted_alignment",
    "whitened_feature_loss": "whitened_features",
}

__getattr__, __dir__ = lazy_names(__name__, globals(), _HOMES)
