"""Measure models: task scores, fidelity to a teacher, cost, and samples to look at. Needs no Trainer."""

from potstill.evaluate.attention import MapPair, compare_attention
from potstill.evaluate.attention_axes import attention_distance, head_similarity
from potstill.evaluate.calibration import calibration_error
from potstill.evaluate.clusters import cluster_accuracy, match_clusters
from potstill.evaluate.cost import cost, weight_size
from potstill.evaluate.fewshot import retrieval_fewshot_scores
from potstill.evaluate.fidelity import cka_table, fidelity
from potstill.evaluate.measure import measure
from potstill.evaluate.metrics import METRICS, Metric
from potstill.evaluate.novel_classes import novel_class_scores
from potstill.evaluate.samples import sample_answers
from potstill.evaluate.statistics import Interval, mean_interval, paired_interval, proportion_error
from potstill.evaluate.tasks import evaluate_retrieval, evaluate_tasks, main_score

__all__ = [
    "METRICS",
    "Interval",
    "MapPair",
    "Metric",
    "attention_distance",
    "calibration_error",
    "cka_table",
    "cluster_accuracy",
    "compare_attention",
    "cost",
    "evaluate_retrieval",
    "evaluate_tasks",
    "fidelity",
    "head_similarity",
    "main_score",
    "match_clusters",
    "mean_interval",
    "measure",
    "novel_class_scores",
    "paired_interval",
    "proportion_error",
    "retrieval_fewshot_scores",
    "sample_answers",
    "weight_size",
]
