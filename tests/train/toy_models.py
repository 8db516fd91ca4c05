"""A two-module toy ("image" and "text" stacks, widths 6 and 4, a class head); a sample is a function of its index."""

import torch
from torch import nn

from potstill.losses import kd_kl
from potstill.objectives import HiddenObjective, OutputObjective, Where
from potstill.train import DistillationArguments, DistillationTrainer, DistillModule


class Block(nn.Module):
    def __init__(self, width, dropout):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return x + self.dropout(torch.tanh(self.linear(x)))


class Stack(nn.Module):
    def __init__(self, width, layers, dropout):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(layers))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Toy(nn.Module):
    def __init__(self, width=6, layers=2, dropout=0.0, classes=5, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.enter_image, self.enter_text = nn.Linear(3, width), nn.Linear(2, width)
            self.image, self.text = Stack(width, layers, dropout), Stack(width, layers, dropout)
            self.head = nn.Linear(width, classes)

    def forward(self, pixels, words, words_mask=None):
        image, text = self.image(self.enter_image(pixels)), self.text(self.enter_text(words))
        weight = torch.ones(words.shape[:2]) if words_mask is None else words_mask.float()
        pooled = (text * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)
        return {"logits": self.head(image.mean(1) + pooled)}


class ToyData(torch.utils.data.Dataset):
    is_generated = True

    def __init__(self, size=4096, seed=0, bad=()):
        self.size, self.seed, self.bad = size, seed, bad  # a bad sample has a NaN in its picture

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        g = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        length = 2 + index % 3
        mask = torch.arange(4) < length
        pixels = torch.randn(5, 3, generator=g)
        return {
            "pixels": pixels.masked_fill(torch.tensor(index in self.bad), torch.nan),
            "words": torch.randn(4, 2, generator=g) * mask[:, None],
            "words_mask": mask,
            "labels": torch.tensor(index % 5 if index % 4 else -100),
            "sample_id": torch.tensor(index),
        }


def collate(rows):
    return {k: torch.stack([r[k] for r in rows]) for k in rows[0]}


def objectives(layers_s=1, layers_t=2, hidden=0.1):
    last = [(f"{{}}.blocks.{layers_s - 1}", f"{{}}.blocks.{layers_t - 1}")]
    return [
        OutputObjective("answer", kd_kl, "logits", where=Where(labels="labels")),
        HiddenObjective(
            "hidden.image", [(s.format("image"), t.format("image")) for s, t in last], module="image", weight=hidden
        ),
        HiddenObjective(
            "hidden.text",
            [(s.format("text"), t.format("text")) for s, t in last],
            module="text",
            where=Where(mask="words_mask"),
            weight=hidden,
        ),
    ]


def arguments(folder, steps=12, batch=8, accumulation=1, **more):
    settings = dict(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        round_steps=3,
        probe_batches=2,
        use_cpu=True,
        seed=0,
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
    )
    return DistillationArguments(**{**settings, **more})


def trainer(
    folder, *, student=None, teacher=None, policy=None, objective_list=None, history=None, data=None, **settings
):
    return DistillationTrainer(
        student if student is not None else Toy(width=4, layers=1, dropout=0.1, seed=1),
        objective_list or (None if isinstance(student, DistillModule) else objectives()),
        teacher=teacher if teacher is not None else Toy(),
        policy=policy,
        args=arguments(folder, **settings),
        train_dataset=data if data is not None else ToyData(),
        data_collator=collate,
        history=history,
    )
