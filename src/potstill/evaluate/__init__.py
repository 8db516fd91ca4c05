"""Measure models: task scores, fidelity to a teacher, cost, and samples to look at. Needs no Trainer."""

from potstill.evaluate.attention import MapPair, compare_attention
from potstill.evaluate.attention_axes import attention_distance, head_similarity
from potstill.evaluate.calibration import calibration_error
from potstill.evaluate.cost import cost, weight_size
from potstill.evaluate.fidelity import cka_table, fidelity
from potstill.evaluate.measure import measure
from potstill.evaluate.metrics import METRICS, Metric
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
    "compare_attention",
    "cost",
    "evaluate_retrieval",
    "evaluate_tasks",
    "fidelity",
    "head_similarity",
    "main_score",
    "mean_interval",
    "measure",
    "paired_interval",
    "proportion_error",
    "sample_answers",
    "weight_size",
]
