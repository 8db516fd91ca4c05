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

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potstill.losses.attention_alignment import amad_loss
    from potstill.losses.attention_probabilities import attention_kl
    from potstill.losses.attention_projection import AttentionProjection
    from potstill.losses.attention_resizing import resize_attention
    from potstill.losses.averaged_heads import head_mean
    from potstill.losses.correlation import dist_loss
    from potstill.losses.decoupled import dkd
    from potstill.losses.ensemble_targets import ensemble_soft_target, meal_v2_similarity_loss
    from potstill.losses.forward_kl import kd_kl
    from potstill.losses.hints import hint_mse
    from potstill.losses.jensen_shannon import generalized_jsd
    from potstill.losses.kernel_alignment import cka, cka_loss
    from potstill.losses.minillm import MinillmReturns, minillm_returns, teacher_mixed_probs
    from potstill.losses.module_hidden import module_hidden_loss
    from potstill.losses.mutual_information import MIAlphaLoss, mi_alpha_bound
    from potstill.losses.output_discriminator import OutputDiscriminator, meal_v2_discriminator_loss
    from potstill.losses.paired_heads import one_to_one_heads
    from potstill.losses.pseudo_class_basis import LELPBasis, LELPStatistics, fit_lelp
    from potstill.losses.pseudo_classes import lelp_class_logits, lelp_class_probs, lelp_loss, lelp_targets
    from potstill.losses.relations import minilm_relation
    from potstill.losses.reversed_kl import reverse_kl
    from potstill.losses.spatial_attention import attention_transfer
    from potstill.losses.squeezed_heads import squeezing_heads
    from potstill.losses.total_variation import tv_distance

__all__ = [
    "AttentionProjection",
    "LELPBasis",
    "LELPStatistics",
    "MIAlphaLoss",
    "MinillmReturns",
    "OutputDiscriminator",
    "amad_loss",
    "attention_kl",
    "attention_transfer",
    "cka",
    "cka_loss",
    "dist_loss",
    "dkd",
    "ensemble_soft_target",
    "fit_lelp",
    "generalized_jsd",
    "head_mean",
    "hint_mse",
    "kd_kl",
    "lelp_class_logits",
    "lelp_class_probs",
    "lelp_loss",
    "lelp_targets",
    "meal_v2_discriminator_loss",
    "meal_v2_similarity_loss",
    "mi_alpha_bound",
    "minillm_returns",
    "minilm_relation",
    "module_hidden_loss",
    "one_to_one_heads",
    "resize_attention",
    "reverse_kl",
    "squeezing_heads",
    "teacher_mixed_probs",
    "tv_distance",
]

# No file bears the name of a public function: importing such a file would hide the function behind the module.
_HOMES = {
    "AttentionProjection": "attention_projection",
    "LELPBasis": "pseudo_class_basis",
    "LELPStatistics": "pseudo_class_basis",
    "MIAlphaLoss": "mutual_information",
    "MinillmReturns": "minillm",
    "OutputDiscriminator": "output_discriminator",
    "amad_loss": "attention_alignment",
    "attention_kl": "attention_probabilities",
    "attention_transfer": "spatial_attention",
    "cka": "kernel_alignment",
    "cka_loss": "kernel_alignment",
    "dist_loss": "correlation",
    "dkd": "decoupled",
    "ensemble_soft_target": "ensemble_targets",
    "fit_lelp": "pseudo_class_basis",
    "generalized_jsd": "jensen_shannon",
    "head_mean": "averaged_heads",
    "hint_mse": "hints",
    "kd_kl": "forward_kl",
    "lelp_class_logits": "pseudo_classes",
    "lelp_class_probs": "pseudo_classes",
    "lelp_loss": "pseudo_classes",
    "lelp_targets": "pseudo_classes",
    "meal_v2_discriminator_loss": "output_discriminator",
    "meal_v2_similarity_loss": "ensemble_targets",
    "mi_alpha_bound": "mutual_information",
    "minillm_returns": "minillm",
    "minilm_relation": "relations",
    "module_hidden_loss": "module_hidden",
    "one_to_one_heads": "paired_heads",
    "resize_attention": "attention_resizing",
    "reverse_kl": "reversed_kl",
    "squeezing_heads": "squeezed_heads",
    "teacher_mixed_probs": "minillm",
    "tv_distance": "total_variation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
