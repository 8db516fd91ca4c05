"""Novel class discovery in two stages, with class-relation distillation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from potstill.data.sources import DataSource
from potstill.errors import InputError
from potstill.evaluate.novel_classes import novel_class_scores
from potstill.recipe import Recipe, load_recipe
from potstill.run import distill
from potstill.run.build import build_source
from potstill.run.measure import Run

_SMALL = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 32, 64],
    "depths": [1, 1, 1],
    "layer_type": "basic",
}


@dataclass(frozen=True)
class NCDPipeline:
    """Learn K known classes from labels, then find U new ones among samples without.

    Stage "known": encoder and cosine head on the labels. Stage "discovery": the same model, with heads that look for
    clusters, is trained by ``crkd_ncd``; its teacher is a frozen copy of itself as the stage begins. It is a recipe of
    two stages (``recipe``), so it plans, resumes and exports as any run does. The defaults are those of the packaged
    recipe crkd-ncd-digits, a few minutes on a processor; the paper's are in docs/losses/class-relation.md.

    Args:
        known: K. The data has to give labels to the classes below K alone, and -100 to the rest.
        novel: U, how many new classes to look for. It has to be known or guessed.
        encoder: Configuration of a vision model of transformers, with its ``model_type``.
        data: The recipe's data section; None = handwritten digits, the first K with labels, in ``views`` views.
        views: Views of each sample in a batch.
        heads: H.
        projector_width, cluster_width: See ``NovelClassHead``.
        steps: Optimiser steps of both stages.
        batch_size: Samples in a batch, each in all its views.
        learning_rate: Of both stages, for AdamW with a cosine schedule.
        kd_weight: alpha, 0 = no distillation.
        kd_temperature: T.
        detach_weight: See ``class_relation_kd``.
        seed: Of everything random.

    Raises:
        InputError: steps that are not two numbers.
        RecipeError: from ``recipe``, for what a recipe refuses.

    Example:
        >>> recipe = NCDPipeline(kd_weight=0.0, seed=3).recipe()
        >>> [stage.name for stage in recipe.stages], recipe.stages[1].objectives[0].options["kd_weight"]
        (['known', 'discovery'], 0.0)
    """

    known: int = 5
    novel: int = 5
    encoder: Mapping[str, Any] = field(default_factory=lambda: dict(_SMALL))
    data: Mapping[str, Any] | None = None
    views: int = 2
    heads: int = 2
    projector_width: int = 256
    cluster_width: int = 64
    steps: tuple[int, int] = (300, 600)
    batch_size: int = 64
    learning_rate: float = 1e-3
    kd_weight: float = 0.1
    kd_temperature: float = 4.0
    detach_weight: bool = False
    seed: int = 0

    def __post_init__(self):
        if len(self.steps) != 2:
            raise InputError("not two stages", where="steps", expected="(known, discovery)", got=self.steps)

    def recipe(self) -> Recipe:
        """Return the recipe of both stages."""
        distillation = {"loss": "crkd_ncd", "views": self.views, "kd_weight": self.kd_weight}
        distillation["kd_temperature"] = self.kd_temperature
        if self.detach_weight:
            distillation["detach_weight"] = True
        sizes = {"num_heads": self.heads, "projector_width": self.projector_width, "cluster_width": self.cluster_width}
        fields = {"encoder": dict(self.encoder), "num_novel": self.novel, **sizes}
        digits = {"source": "digits", "known": self.known, "views": self.views, "augment": "light"}
        data = digits if self.data is None else dict(self.data)
        stages = [
            {"name": "known", "train": {"steps": self.steps[0]}},
            {
                "name": "discovery",
                "teacher": {"model": "student"},
                "objectives": [distillation],
                "train": {"steps": self.steps[1]},
            },
        ]
        return load_recipe(
            {
                "version": 1,
                "name": f"crkd-ncd-{data['source']}",
                "seed": self.seed,
                "student": {"builder": "new", "family": "novel_classes", "fields": fields},
                "data": data,
                "objectives": [{"loss": "cosine_cross_entropy"}],
                "train": {
                    "batch_size": self.batch_size,
                    "learning_rate": self.learning_rate,
                    "weight_decay": 1.5e-4,
                    "schedule": "cosine",
                    "log_every": 20,
                    "checkpoint_every": 200,
                },
                "evaluate": {"split": "test", "samples": 1000},
                "stages": stages,
            }
        )

    def run(self, out: str | Path, *, source: DataSource | None = None, resume: bool = False, **options: Any) -> Run:
        """Carry out both stages; see ``potstill.run.distill``.

        Args:
            out: Run folder.
            source: Data made in Python: batches of ``views`` views as the source "digits" makes them.
            resume: Go on from the newest complete checkpoint.
            options: Further arguments of ``distill``.
        """
        return distill(self.recipe(), out, source=source, resume=resume, **options)

    def scores(
        self, student: nn.Module, source: DataSource | None = None, *, split: str = "all", samples: int | None = None
    ) -> dict[str, float]:
        """Return ``novel_class_scores`` of a trained student on a split that has known and new classes."""
        source = build_source(self.recipe()) if source is None else source
        return novel_class_scores(student, source.split(split), source.collator, max_samples=samples)
