"""Run by two processes, and by one that accumulates: recipes of pictures, tiny, from the command to the export."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

import potstill

TINY = [
    *("train.batch_size=8", "train.steps=4", "train.warmup_steps=0", "train.threads=1", "train.log_every=1"),
    *("train.checkpoint_every=4", "evaluate.samples=4", "evaluate.shown=0", "evaluate.attention=false"),
    *("evaluate.splits=[]", "train.optimizer=sgd", "train.learning_rate=0.05"),
]
CNN = "student.of.fields={embedding_size: 4, hidden_sizes: [4, 8], depths: [1, 1], layer_type: basic}"
VIT = ("student.fields.hidden_size=8", "student.fields.intermediate_size=8", "student.fields.patch_size=2")
RECIPES = {
    "active-distill-digits": ["data.pool=64", "selection.epoch_samples=32", "selection.budget=4", "data.labelled=1"],
    "kd3-emoji": ["teacher.model=emoji-cnn", "data.pool=64", CNN],
    "vlm-ood-emoji": [
        *("teacher.model=emoji-cnn", "objectives[0].text=classifier.1.weight"),
        *("objectives[0].teacher_on=classifier.1@input", "data.pool=64", CNN),
    ],
    # Without the term of the first stage's model, whose batch norm has seen one rank's rows.
    "crkd-ncd-digits": [
        *("data.pool=64", "stages[0].train.steps=2", "stages[1].train.steps=3"),
        "stages[1].objectives[0].kd_weight=0",
    ],
    "hybrid-distill-emoji": [
        *("teachers.contrastive.model={teachers}/contrastive", "teachers.masked_image.model={teachers}/masked_image"),
        *("data.concepts=12", "data.image_size=16", "data.pool=64", "stages[1].train.steps=2", *VIT),
    ],
}


def trained(name, folder, *more):
    """Return the student's weights after a run of a recipe."""
    overrides = [word.format(teachers=folder / "teachers") if "{teachers}" in word else word for word in RECIPES[name]]
    run = potstill.distill(name, folder / name, overrides=[*TINY, *overrides, *more])
    return {key: value.detach().clone() for key, value in run.student.state_dict().items()}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    folder = Path(sys.argv[1])
    found = {name: trained(name, folder) for name in RECIPES}
    torch.save(found, folder / f"rank{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()
