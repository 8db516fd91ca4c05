"""Run by two processes: GradMag measures the gradients of all ranks together."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

torch.set_num_threads(1)
from test_grad_mag import student, three, values  # noqa: E402
from toy_models import Toy, trainer  # noqa: E402

from potstill.train import DistillModule  # noqa: E402


def trained(folder, batch):
    """Return weights of terms and of the model after four steps of eight rows."""
    run = trainer(folder, student=DistillModule(student(), three()), teacher=Toy(), steps=4, batch=batch, optim="sgd")
    run.train()
    return {"terms": values(run.model), **{n: p.detach() for n, p in run.model.named_parameters()}}


if __name__ == "__main__":
    found = trained(Path(sys.argv[1]) / "run", 4)
    torch.save(found, Path(sys.argv[1]) / f"rank{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()
