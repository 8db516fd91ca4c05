"""What DistillationTrainer costs on top of a training loop written by hand. Goal: ratio at most 1.05.

Both distil a CoCa of the shipped teacher's size (untrained: the work is the same) as the recipe ``optima-scenes`` says,
with every module's hidden states: same batches, teacher, losses, clipping, optimiser and schedule. After every step
of the Trainer the hand-written loop does one, so both see the same machine; the students must end alike, which proves
that both did the same work. Run from the repository root::

    OMP_NUM_THREADS=1 python benchmarks/trainer_overhead.py

Appends to ``benchmarks/results/trainer_overhead.csv``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from _record import RESULTS, append_rows, origin
from _scenes import TASKS, untrained_teacher
from _timing import Clock, ratio
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler
from transformers import TrainerCallback, get_linear_schedule_with_warmup

from potstill.recipe import load_recipe
from potstill.run import prepare

GOAL = 1.05

STUDENT = "student={builder: depth, layers: 1}"  # as wide as the teacher: the loop by hand has no projectors


def kl(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    counts = labels != -100
    if not counts.any():
        return student.sum() * 0.0
    logs_s, logs_t = student[counts].log_softmax(-1), teacher[counts].log_softmax(-1)
    return F.kl_div(logs_s, logs_t, reduction="batchmean", log_target=True)


class ByHand:
    """The loop a user would write: a model, hooks on its blocks, losses in plain torch."""

    def __init__(self, student: nn.Module, teacher: nn.Module, pairs: list[tuple[str, str, str]], loader, train):
        self.student, self.teacher = student.train(), teacher.eval()
        self.pairs, self.batches = pairs, iter(loader)
        self.seen: dict[tuple[str, str], Tensor] = {}
        for side, model, paths in (("s", student, {s for _, s, _ in pairs}), ("t", teacher, {t for _, _, t in pairs})):
            for path in paths:
                model.get_submodule(path).register_forward_hook(self._keep(side, path))
        decayed = [p for n, p in student.named_parameters() if p.requires_grad and p.ndim > 1]
        others = [p for n, p in student.named_parameters() if p.requires_grad and p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": train.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.parameters = decayed + others
        self.optimizer = torch.optim.AdamW(groups, lr=train.learning_rate, betas=train.betas)
        self.schedule = get_linear_schedule_with_warmup(self.optimizer, train.warmup_steps, train.steps)
        self.max_norm = train.max_grad_norm

    def _keep(self, side: str, path: str):
        def hook(module, args, output):
            self.seen[side, path] = output[0] if isinstance(output, tuple) else output

        return hook

    def step(self, hidden_weight: float) -> None:
        batch = next(self.batches)
        inputs = {k: batch[k] for k in ("pixel_values", "image_mask", "input_ids", "attention_mask")}
        with torch.no_grad():
            expected = self.teacher(**inputs)
        got = self.student(**inputs)
        loss = kl(got.caption_logits, expected.caption_logits, batch["caption_labels"])
        for task in TASKS[1:]:
            loss = loss + kl(got.task_logits[task], expected.task_logits[task], batch[f"{task}_labels"])
        for module, path_s, path_t in self.pairs:
            squares = (self.seen["s", path_s] - self.seen["t", path_t]).square().mean(-1)
            if module != "image_encoder":
                mask = batch["attention_mask"].to(squares.dtype)
                loss = loss + hidden_weight * (squares * mask).sum() / mask.sum()
            else:
                loss = loss + hidden_weight * squares.mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.seen.clear()
        if not loss.isfinite():  # what every careful loop checks; DistillationTrainer does too
            raise FloatingPointError(f"the loss became {loss.item()}")


class InTurn(TrainerCallback):
    """Lets the hand-written loop do a step after each of the Trainer's, and stops both clocks meanwhile."""

    def __init__(self, by_hand: ByHand, hidden_weight: float):
        self.by_hand, self.hidden_weight = by_hand, hidden_weight
        self.theirs, self.ours = Clock(), Clock()

    def on_train_begin(self, args, state, control, **kwargs):
        self.ours.start()

    def on_step_end(self, args, state, control, **kwargs):
        self.ours.stop()
        self.theirs.start()
        self.by_hand.step(self.hidden_weight)
        self.theirs.stop()
        self.ours.start()


@torch.no_grad()
def farthest(one: nn.Module, other: nn.Module) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one.parameters(), other.parameters()))


def measure(steps: int, batch_size: int) -> dict[str, object]:
    changes = [f"train.steps={steps}", f"train.batch_size={batch_size}", "train.threads=1"]
    recipe = load_recipe("optima-scenes", [*changes, f"train.checkpoint_every={steps + 1}", "policy=null", STUDENT])
    teacher = untrained_teacher()
    with tempfile.TemporaryDirectory() as folder:
        built = prepare(recipe, Path(folder), teacher=teacher)
        hidden = next(o.weight for o in recipe.objectives if o.loss == "hidden")
        pairs = [(m["name"], p["student"], p["teacher"]) for m in built.plan["modules"] for p in m["pairs"]]
        copy = prepare(recipe, Path(folder), teacher=untrained_teacher())
        copy.trainer.teacher.close()
        copy.trainer.model._taps.remove()
        data = built.source.split("train")
        loader = DataLoader(data, batch_size, sampler=SequentialSampler(data), collate_fn=built.source.collator)
        callback = InTurn(ByHand(copy.student, copy.teacher, pairs, loader, recipe.train), hidden)
        built.trainer.add_callback(callback)
        built.trainer.train()
    apart = farthest(built.student, copy.student)
    if apart > 1e-3:
        raise SystemExit(f"the two loops do not do the same work: the students end {apart:.1e} apart")
    callback.ours.drop(5)
    callback.theirs.drop(5)
    return {
        "goal": GOAL,
        "batch_size": batch_size,
        "steps": steps - 5,
        **{f"wall_{k}": v for k, v in ratio(callback.ours.wall, callback.theirs.wall).items()},
        **{f"cpu_{k}": v for k, v in ratio(callback.ours.processor, callback.theirs.processor).items()},
        "trainer_ms": round(1e3 * statistics.median(callback.ours.processor), 2),
        "by_hand_ms": round(1e3 * statistics.median(callback.theirs.processor), 2),
        "students_apart": f"{apart:.1e}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=65)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 8])
    parser.add_argument("--out", type=Path, default=RESULTS / "trainer_overhead.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    where = origin()
    for size in options.batch_sizes:
        row = measure(options.steps, size)
        append_rows(options.out, [row | where])
        print(" ".join(f"{k} {v}" for k, v in row.items()))


if __name__ == "__main__":
    main()
