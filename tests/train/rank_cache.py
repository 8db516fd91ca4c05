"""Run by two processes, and by one that accumulates: a run that reads its teacher from a cache."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

import potstill

DATA = ("data.pool=64",)
TINY = (
    *("train.batch_size=8", "train.steps=4", "train.warmup_steps=0", "train.threads=1", "train.log_every=1"),
    *("train.checkpoint_every=4", "evaluate.samples=4", "evaluate.shown=0", "evaluate.splits=[]"),
    *("train.optimizer=sgd", "train.learning_rate=0.05", "evaluate.teacher=false"),
)


def trained(folder, cache, *more):
    """Return the student's weights after a run."""
    overrides = [*DATA, *TINY, f"teacher.cache={cache}", *more]
    run = potstill.distill("kd-emoji", folder / "run", overrides=overrides)
    return {key: value.detach().clone() for key, value in run.student.state_dict().items()}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    folder = Path(sys.argv[1])
    torch.save(trained(folder, sys.argv[2]), folder / f"rank{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()
