"""The engine: one trained module, a thin adapter on transformers' Trainer, checkpoints that hold."""

from potstill.train.arguments import DistillationArguments
from potstill.train.grad_mag import GradMag
from potstill.train.module import DistillModule, DistillOutput
from potstill.train.nonfinite import load_batch
from potstill.train.probe import Probe
from potstill.train.sharding import is_sharded, shard, whole_state, whole_student
from potstill.train.trainer import DistillationTrainer

__all__ = [
    "DistillModule",
    "DistillOutput",
    "DistillationArguments",
    "DistillationTrainer",
    "GradMag",
    "Probe",
    "is_sharded",
    "load_batch",
    "shard",
    "whole_state",
    "whole_student",
]
