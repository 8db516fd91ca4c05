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
        recipe: A packaged recipe that runs it, or None.
        evidence: Committed result file, or None.
    """

    name: str
    kind: str
    paper: str
    api: tuple[str, ...]
    recipe: str | None = None
    evidence: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return asdict(self)


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
    ),
    System(
        "rivals of amad",
        "loss",
        "Heads paired by number, mean of heads, Squeezing-Heads Distillation arXiv 2502.07436",
        tuple(f"potstill.losses.{name}" for name in ("one_to_one_heads", "head_mean", "squeezing_heads")),
        "amad-blip-vqa",
        "benchmarks/results/amad_students.csv",
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
    ),
)
