"""Run by two processes: each has its student write, from draws of its own; stopped at a step if one is given."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from potstill.data.generation import OnPolicySampler
from potstill.losses import reverse_kl
from potstill.objectives import OutputObjective, Where
from potstill.ranks import process_rank
from potstill.train import DistillationArguments, DistillationTrainer
from tiny_texts import Texts, collate
from tiny_writers import END, PAD, llama


class Stop(TrainerCallback):
    """Ends the training after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def main(folder, runs, stop=0, resume=0):
    args = DistillationArguments(
        output_dir=str(runs), max_steps=4, per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=1,
        save_strategy="steps", save_steps=2, use_cpu=True, seed=0, data_seed=0,
    )  # fmt: skip
    sampler = OnPolicySampler(
        0.7, 4, eos_token_id=END, pad_token_id=PAD, seed=process_rank() + 10 * resume, per="row", buffer=8, reuse=0.3
    )
    objective = OutputObjective("rkl", reverse_kl, "logits", where=Where(labels="labels"), shift=True)
    trainer = DistillationTrainer(
        llama(0), [objective], teacher=llama(1), args=args, train_dataset=Texts(), data_collator=collate,
        rollouts=sampler, callbacks=[Stop(stop)],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=True if resume else None)
    state = {name: p.detach() for name, p in trainer.model.named_parameters()}
    state["texts"] = torch.cat([row["tokens"] for row in sampler.state_dict()["rows"]])
    torch.save(state, Path(folder) / f"rank{process_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
