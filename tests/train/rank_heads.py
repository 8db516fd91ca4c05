"""Run by two processes: trains a small Llama under DDP and sharded, its output head resting or not, tied or not."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

torch.set_num_threads(1)
from rank_cases import Watch  # noqa: E402
from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM  # noqa: E402

from potstill.losses import LazyLogits, generalized_jsd, kd_kl  # noqa: E402
from potstill.models.output_head import find_output_head  # noqa: E402
from potstill.objectives import LabelObjective, OutputObjective, Where  # noqa: E402
from potstill.teachers import LiveTeacher  # noqa: E402
from potstill.train import DistillationArguments, DistillationTrainer, DistillModule, is_sharded, whole_state  # noqa: E402
from tiny_texts import Texts, collate  # noqa: E402

ROWS = 8  # per step, over all ranks and micro-batches
KINDS = {
    "tied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "untied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": False}),
    "scaled": (GraniteForCausalLM, GraniteConfig, {"tie_word_embeddings": True, "logits_scaling": 4.0}),
}


def model(kind, seed):
    cls, config, options = KINDS[kind]
    sizes = {"vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32,
             "initializer_range": 0.5, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}  # fmt: skip
    torch.manual_seed(seed)
    return cls(config(**sizes, **options))


def train(folder, kind, *, rests, shard=False, accumulation=1, checkpointing=False):
    """Train three steps and return gradients, hashes of the weights, and the state, whole."""
    where = {"where": Where(labels="labels"), "shift": True}
    module = DistillModule(
        model(kind, 1),
        [
            OutputObjective("kl", kd_kl, "logits", options={"temperature": 2.0}, **where),
            OutputObjective("jsd", generalized_jsd, "logits", weight=0.5, module="end", **where),
            LabelObjective("label", "logits", "labels", shift=True, weight=0.3),
        ],
    )
    if checkpointing:
        module.student.gradient_checkpointing_enable({"use_reentrant": False})
    live = LiveTeacher(model(kind, 2), outputs=module.teacher_outputs)
    if rests:
        module.head, live.head = find_output_head(module.student), find_output_head(live.model)
        module.logits_budget = 100  # one row at a time
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    args = DistillationArguments(
        output_dir=str(folder), max_steps=3, per_device_train_batch_size=ROWS // ranks // accumulation,
        gradient_accumulation_steps=accumulation, learning_rate=1e-2, logging_steps=1, save_strategy="no",
        use_cpu=True, seed=0, data_seed=0, shard=shard, max_grad_norm=0.0, optim="sgd",
    )  # fmt: skip
    watch = Watch()
    trainer = DistillationTrainer(
        module, teacher=live, args=args, train_dataset=Texts(), data_collator=collate, callbacks=[watch]
    )
    trainer.train()
    return {
        "gradients": watch.gradients,
        "hashes": watch.hashes,
        "losses": [event["loss"] for event in trainer.history.events if event["event"] == "step"],
        "sharded": is_sharded(module),
        "lazy": isinstance(live.signal(collate([Texts()[0]])).outputs["logits"], LazyLogits),
        "state": whole_state(module, on_all=True),
    }


CASES = {
    f"{kind} {name}": (kind, options)
    for kind in KINDS
    for name, options in {
        "whole": {"rests": False},
        "ddp": {"rests": True},
        "ddp, 2 micro-batches, checkpointing": {"rests": True, "accumulation": 2, "checkpointing": True},
        "sharded": {"rests": True, "shard": True},
        "sharded, 2 micro-batches, checkpointing": {
            "rests": True, "shard": True, "accumulation": 2, "checkpointing": True,
        },
    }.items()
}  # fmt: skip


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    seen = {name: train(folder / name, kind, **options) for name, (kind, options) in CASES.items()}
    torch.save(seen, folder / f"rank{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
