"""Scores of a model that knows some classes and has clusters for others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import InputError
from potstill.evaluate.batches import choose_indices, device_of, iterate, measuring
from potstill.evaluate.clusters import cluster_accuracy, match_clusters
from potstill.evaluate.metrics import METRICS, Metric, View
from potstill.evaluate.statistics import proportion_error


def novel_class_scores(
    model: nn.Module,
    dataset: Any,
    collator: Callable[[list[Any]], Mapping[str, Any]],
    *,
    truth: str = "true_class",
    batch_size: int = 256,
    max_samples: int | None = None,
) -> dict[str, float]:
    """Measure a ``NovelClassModel`` on samples of known and new classes.

    Clusters have no names, so the clusters are matched with the new classes by ``match_clusters`` on the same samples.

    Args:
        model: Returns ``head_cosines`` ``[B, H, K + U]`` and ``known_cosines`` ``[B, K]``, and has ``best_head``.
        dataset: Map-style, without augmentation.
        collator: Makes batches of it, one row a sample.
        truth: Batch key of the true classes ``[B]``: below K = known, from K on = new, below 0 = not measured.
        batch_size: Of the forward passes.
        max_samples: Draw that many samples.

    Returns:
        Shares, each where there is a sample of its kind: "known" (right among all K + U), "novel" (right among all,
        by the best head), "all" (both together), "novel_alone" (new samples among the U clusters only, as known to be
        new, by the best head), "novel_alone_mean" (the mean over heads).

    Raises:
        InputError: No sample, no truth, or a model of another kind.
    """
    device, rows = device_of(model), []
    best = getattr(model, "best_head", None)
    if best is None:
        raise InputError("has no best_head", where="model", expected="a NovelClassModel", got=type(model).__name__)
    with measuring(model):
        for _, batch in iterate(
            dataset, collator, choose_indices(dataset, max_samples), batch_size=batch_size, device=device
        ):
            if truth not in batch:
                raise InputError(f'the batch has no "{truth}"', where="truth")
            output = model(pixel_values=batch["pixel_values"])
            known = output.known_cosines.shape[-1]
            rows.append((batch[truth].cpu(), output.head_cosines.float().cpu()))
    if not rows:
        raise InputError("there is no sample", where="dataset")
    true, cosines = (torch.cat(column) for column in zip(*rows))
    keep = true >= 0
    return _scores(true[keep], cosines[keep], known, int(best))


@METRICS.register("novel_classes")
class NovelClassification(Metric):
    """Accuracy where some classes are clusters without a name: matched with the classes on the samples measured.

    What ``novel_class_scores`` returns; "accuracy" is its "all".
    """

    def __init__(self):
        self.rows: list[tuple[Tensor, Tensor]] = []
        self.known = self.best = 0

    def add(self, view: View) -> None:
        """Count one batch."""
        self.known, self.best = view.output.known_cosines.shape[-1], int(view.model.best_head)
        self.rows.append((view.labels[view.rows].cpu(), view.output.head_cosines[view.rows].float().cpu()))

    def result(self) -> dict[str, Any]:
        """Return the shares, the standard error of the accuracy, and the number of samples."""
        true, cosines = (torch.cat(column) for column in zip(*self.rows))
        scores = _scores(true, cosines, self.known, self.best)
        share = scores.pop("all")
        return {"accuracy": share, "stderr": proportion_error(share, len(true)), "samples": len(true), **scores}


def _scores(true: Tensor, cosines: Tensor, known: int, best: int) -> dict[str, float]:
    """Return the shares for classes ``[n]`` and cosines ``[n, H, K + U]``."""
    predicted, is_new = cosines[:, best].argmax(-1), true >= known
    is_right, scores = predicted == true, {}
    if (~is_new).any():
        scores["known"] = is_right[~is_new].double().mean().item()
    if is_new.any():
        in_cluster = is_new & (predicted >= known)
        matching = match_clusters(true[in_cluster], predicted[in_cluster]) if in_cluster.any() else {}
        named = torch.tensor([matching.get(int(cluster), -1) for cluster in predicted])
        is_right = torch.where(is_new, named == true, is_right)
        scores["novel"] = is_right[is_new].double().mean().item()
    scores["all"] = is_right.double().mean().item()
    if is_new.any():
        clusters = cosines[is_new][..., known:].argmax(-1)  # [n, H]
        by_head = [cluster_accuracy(true[is_new], clusters[:, h]) for h in range(clusters.shape[1])]
        scores |= {"novel_alone": by_head[best], "novel_alone_mean": sum(by_head) / len(by_head)}
    return scores
