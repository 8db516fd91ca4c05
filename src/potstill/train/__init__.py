"""The engine: one trained module, a thin adapter on transformers' Trainer, checkpoints that hold."""

from potstill.train.arguments import DistillationArguments
from potstill.train.module import DistillModule, DistillOutput
from potstill.train.nonfinite import load_batch
from potstill.train.probe import Probe
from potstill.train.trainer import DistillationTrainer

__all__ = ["DistillModule", "DistillOutput", "DistillationArguments", "DistillationTrainer", "Probe", "load_batch"]
