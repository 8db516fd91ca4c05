"""Run by one or two processes: DAC-KL and spans on texts whose domains DDK draws."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from potstill.data.selection import DDKSelection
from potstill.objectives import DacKLObjective, DDKObjective, SpanCorrelationObjective
from potstill.ranks import process_rank
from potstill.train import DistillationArguments, DistillationTrainer
from tiny_writers import V, llama

DOMAINS = ["few", "many"]


class Texts(torch.utils.data.Dataset):
    """Six tokens; a quarter of the rows are of the first domain, whose tokens are few."""

    def __init__(self, n, seed):
        draws = torch.Generator().manual_seed(seed)
        self.rows = torch.randint(3, V, (n, 6), generator=draws)
        self.rows[::4] = torch.randint(3, 5, (len(self.rows[::4]), 6), generator=draws)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return i, self.rows[i]


def collate(rows):
    index = torch.tensor([i for i, _ in rows])
    ids = torch.stack([ids for _, ids in rows])
    labels = ids.masked_fill((torch.arange(6) < 2) | (index % 3 == 0)[:, None] & (torch.arange(6) == 5), -100)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "span_ids": (torch.arange(6) // 2).expand(ids.shape).clone(),
        "domain": (index % 4 != 0).long(),
        "sample_id": index,
    }


def trained(folder, batch_size):
    args = DistillationArguments(
        output_dir=str(folder), max_steps=5, per_device_train_batch_size=batch_size, learning_rate=1e-2,
        logging_steps=1, save_strategy="no", use_cpu=True, seed=0, data_seed=0, optim="sgd", dataloader_drop_last=True,
    )  # fmt: skip
    objectives = [
        DacKLObjective("band", "logits", "labels", shift=True, M=4, hidden=4),
        SpanCorrelationObjective("spans", "logits", labels="labels", shift=True),
        DDKObjective("text", "logits", "labels"),
    ]
    trainer = DistillationTrainer(
        llama(0), objectives, teacher=llama(1), args=args, train_dataset=Texts(40, 0), heldout_dataset=Texts(24, 1),
        data_collator=collate, selection=DDKSelection(interval=2, samples=5, domains=DOMAINS),
    )  # fmt: skip
    trainer.train()
    return trainer


def main(folder):
    trainer = trained(Path(folder) / f"run{process_rank()}", 2)
    state = {name: p.detach() for name, p in trainer.model.named_parameters()}
    told = [e for e in trainer.history.events if e["event"] == "selection"]
    torch.save(state | {"told": json.dumps(told)}, Path(folder) / f"rank{process_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
