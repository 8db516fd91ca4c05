"""Classifiers of a few numbers, their data and a trainer: a sample is a function of its index."""

import copy
import functools

import torch
from torch import nn

from potstill.losses import lelp_class_logits
from potstill.objectives.base import Seen
from potstill.taps import Signal
from potstill.train import DistillationArguments, DistillationTrainer

CLASSES = 3


class Net(nn.Module):
    """Two layers, a norm that keeps statistics, dropout, and a head with as many units as asked for."""

    def __init__(self, width=8, units=CLASSES, seed=0, dropout=0.0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.second = nn.Linear(6, width), nn.Linear(width, width)
            self.norm, self.dropout = nn.BatchNorm1d(width), nn.Dropout(dropout)
            self.head = nn.Linear(width, units)

    def forward(self, numbers):
        x = self.second(torch.relu(self.first(numbers)))
        wide = self.head(self.dropout(self.norm(torch.tanh(x))))
        return {"logits": lelp_class_logits(wide, CLASSES), "wide_logits": wide}


class Numbers(torch.utils.data.Dataset):
    is_generated = True

    def __init__(self, size=64):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        draws = torch.Generator().manual_seed(index)
        label = index % CLASSES
        return {
            "numbers": torch.randn(6, generator=draws) + 2 * torch.eye(6)[label],
            "labels": torch.tensor(label if index % 5 else -100),
            "counts": torch.tensor(index % 4 != 1),
            "sample_id": torch.tensor(index),
        }


def collate(rows):
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


@functools.cache
def _taught(width):
    net = Net(width)
    optimizer = torch.optim.Adam(net.parameters(), 2e-2)
    batch = collate([Numbers()[i] for i in range(64)])
    for _ in range(60):
        torch.nn.functional.cross_entropy(net(batch["numbers"])["logits"], batch["sample_id"] % CLASSES).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net.eval()


def taught(width=8):
    """A teacher that has learned the classes: it decides for each of them now and then."""
    return copy.deepcopy(_taught(width))


def batch_of(rows=range(8)):
    return collate([Numbers()[i] for i in rows])


def arguments(folder, steps=3, batch=8, accumulation=1, **more):
    settings = dict(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        seed=0,
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
    )
    return DistillationArguments(**{**settings, **more})


def trainer(folder, objectives, teacher, student=None, data=None, **settings):
    return DistillationTrainer(
        student if student is not None else Net(5, seed=1),
        objectives,
        teacher=teacher,
        args=arguments(folder, **settings),
        train_dataset=data if data is not None else Numbers(),
        data_collator=collate,
    )


def seen(batch=None, student=None, teacher=None, teachers=None, progress=0.0):
    """What an objective is shown: ``student`` and ``teacher`` are (outputs, tapped)."""
    signals = [None if side is None else Signal(*side) for side in (student, teacher)]
    return Seen(batch, *signals, {name: Signal(*side) for name, side in (teachers or {}).items()}, progress)
