"""Run by two processes: a student whose attention maps are matched, under DDP and sharded."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from transformers import BertConfig, BertModel

from potstill.losses import kd_kl
from potstill.objectives import AMADObjective, OutputObjective
from potstill.teachers import LiveTeacher
from potstill.train import DistillModule
from potstill.train.sharding import shard, whole_student


class Net(nn.Module):
    """A BERT with a head."""

    def __init__(self, heads, seed):
        super().__init__()
        torch.manual_seed(seed)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 30}
        still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        self.bert = BertModel(BertConfig(num_attention_heads=heads, **sizes, **still), add_pooling_layer=False)
        self.head = nn.Linear(16, 4)

    def forward(self, input_ids, attention_mask):
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return {"logits": self.head(hidden.mean(1))}


def trained(wrap, rank=0, ranks=1):
    """Return the student's weights after three steps over the same eight rows."""
    kd = OutputObjective("kd", kd_kl, "logits")
    layer = "bert.encoder.layer.1"
    module = DistillModule(Net(2, 1), [kd, AMADObjective(kd, [(layer, layer, "self")], 0.5, mask="attention_mask")])
    live = LiveTeacher(Net(8, 0), outputs=module.teacher_outputs, taps=module.teacher_taps)
    ids = torch.randint(0, 30, (8, 6), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[::3, 4:] = 0
    whole = {"input_ids": ids, "attention_mask": mask}
    module.build_parts(whole, live.signal(whole))
    model = wrap(module)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    batch = {key: value[rank::ranks] for key, value in whole.items()}
    for _ in range(3):
        model(batch, live.signal(batch)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: value.clone() for name, value in whole_student(module).state_dict().items()}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    here = dist.get_rank(), dist.get_world_size()
    ways = {"ddp": torch.nn.parallel.DistributedDataParallel, "sharded": shard}
    torch.save({name: trained(wrap, *here) for name, wrap in ways.items()}, Path(sys.argv[1]) / f"rank{here[0]}.pt")
    dist.barrier()
    dist.destroy_process_group()
