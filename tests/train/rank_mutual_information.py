"""Run by two processes: MI-α compares the rows of one rank with each other, under DDP."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from potstill.objectives import MIAlphaObjective
from potstill.teachers import LiveTeacher
from potstill.train import DistillModule


class Net(nn.Module):
    """Two layers."""

    def __init__(self, width, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(6, width), nn.Linear(width, width)

    def forward(self, numbers):
        return {"logits": self.second(torch.relu(self.first(numbers)))}


def trained(wrap, shards):
    """Return all weights after three steps; each step takes these shards of eight rows one after another."""
    module = DistillModule(Net(4, 1), [MIAlphaObjective("mi", [("second", "second")], hidden=8, out=4)])
    live = LiveTeacher(Net(5, 0), taps=module.teacher_taps)
    whole = {"numbers": 3 * torch.randn(8, 6, generator=torch.Generator().manual_seed(3))}
    module.build_parts(whole, live.signal(whole))
    model = wrap(module)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(3):
        module.before_step(step / 3, 0.0)
        for rows in shards:
            batch = {key: value[rows] for key, value in whole.items()}
            (model(batch, live.signal(batch)).loss / len(shards)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: value.clone() for name, value in module.named_parameters()}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = trained(torch.nn.parallel.DistributedDataParallel, [slice(4 * rank, 4 * rank + 4)])
    torch.save({name: value.detach() for name, value in found.items()}, Path(sys.argv[1]) / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
