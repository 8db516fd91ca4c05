"""Runs OPTIMA on a toy for many thousand rounds of one step, and looks for what grows.

The trainer, its probes, checkpoints and history are the real ones; models and data are as small as they can be, so that
20,000 rounds take minutes and stand for a day of rounds of some seconds. Sampled a hundred times: resident memory, open
files, threads, objects Python's collector knows, and the processor seconds of a step. Over the second half of the run,
after caches have filled, these have to be flat:

- memory grows by less than 1 KiB a round (the policy keeps every play, some 200 bytes),
- objects by less than 2 a round,
- open files and threads not at all,
- a step in the last tenth takes at most 1.25 times the processor seconds of one in the first;

and the history has to be readable, with every round and step once. Else the exit code is 1. Run from the repository
root::

    OMP_NUM_THREADS=1 python benchmarks/soak.py --rounds 20000

Appends to ``benchmarks/results/soak.csv``.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from _record import RESULTS, append_rows, origin
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainerCallback

from potstill.losses import kd_kl
from potstill.objectives import HiddenObjective, OutputObjective
from potstill.policies import OptimaPolicy
from potstill.train import DistillationArguments, DistillationTrainer
from potstill.train.checkpoint import list_checkpoints

SAMPLES = 100


class Toy(nn.Module):
    """Two modules, "left" and "right", and a head."""

    def __init__(self, width: int):
        super().__init__()
        self.left, self.right = (nn.Sequential(nn.Linear(3, width), nn.Dropout(0.1), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head(self.left(x) + self.right(x)).mean(1)}


class Rows(Dataset):
    is_generated = True

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": torch.tensor([[index % 7, index % 5, index % 3]] * 2, dtype=torch.float32) / 3 - 1}


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {"x": torch.stack([row["x"] for row in rows])}


class Watch(TrainerCallback):
    """Samples the process every so many steps."""

    def __init__(self, every: int):
        self.every, self.process, self.rows = every, psutil.Process(), []
        self.last = time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            seconds = (time.process_time() - self.last) / self.every
            gc.collect()
            row = (state.global_step, self.process.memory_info().rss, self.process.num_fds())
            self.rows.append((*row, self.process.num_threads(), len(gc.get_objects()), seconds))
            self.last = time.process_time()


def soak(rounds: int, checkpoint_every: int, folder: Path) -> Watch:
    torch.manual_seed(0)
    objectives = [
        OutputObjective("answer", kd_kl, "logits"),
        HiddenObjective("hidden.left", [("left", "left")], module="left", weight=0.1),
        HiddenObjective("hidden.right", [("right", "right")], module="right", weight=0.1),
    ]
    trainer = DistillationTrainer(
        Toy(4),
        objectives,
        teacher=Toy(6),
        policy=OptimaPolicy(["left", "right"]),
        args=DistillationArguments(
            output_dir=str(folder / "checkpoints"),
            max_steps=rounds,
            per_device_train_batch_size=2,
            logging_steps=1,
            save_strategy="steps",
            save_steps=checkpoint_every,
            round_steps=1,
            probe_batches=1,
            use_cpu=True,
            dataloader_pin_memory=False,
            dataloader_drop_last=True,
        ),
        train_dataset=Rows(1000),  # many epochs: their change is soaked too
        data_collator=collate,
        history=folder / "history.jsonl",
    )
    watch = Watch(max(1, rounds // SAMPLES))
    trainer.add_callback(watch)
    trainer.train()
    return watch


def slope(steps: np.ndarray, values: np.ndarray) -> float:
    """Return the growth a step over the second half of the run."""
    half = len(steps) // 2
    return float(np.polyfit(steps[half:], values[half:], 1)[0])


def check_history(path: Path, rounds: int) -> list[str]:
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    wrong = []
    for kind in ("step", "round"):
        if [e["step"] for e in events if e["event"] == kind] != list(range(1, rounds + 1)):
            wrong.append(f"the history does not hold every {kind} once")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20000)
    parser.add_argument("--checkpoint-every", type=int, default=500)
    parser.add_argument("--most-bytes", type=float, default=1024, help="memory may grow by this much a round")
    parser.add_argument("--most-objects", type=float, default=2, help="objects may grow by this many a round")
    parser.add_argument("--most-slower", type=float, default=1.25, help="the last steps may take this much longer")
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    where, begun, processor = origin(), time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="potstill-soak-") as name:
        folder = Path(name)
        watch = soak(options.rounds, options.checkpoint_every, folder)
        wrong = check_history(folder / "history.jsonl", options.rounds)
        size = (folder / "history.jsonl").stat().st_size
        newest = list_checkpoints(folder / "checkpoints")[-1]
        files = {path.name: path.stat().st_size for path in newest.iterdir()}
    steps, memory, handles, threads, objects, seconds = np.array(watch.rows).T
    tenth = max(1, len(steps) // 10)
    row: dict[str, Any] = {
        "rounds": options.rounds,
        "checkpoint_every": options.checkpoint_every,
        "wall_seconds": round(time.perf_counter() - begun, 1),
        "cpu_seconds": round(time.process_time() - processor, 1),
        "memory_mib": round(memory[-1] / 2**20, 1),
        "memory_bytes_a_round": round(slope(steps, memory), 1),
        "objects_a_round": round(slope(steps, objects), 3),
        "handles_more": int(handles[-1] - handles[len(handles) // 2]),
        "threads_more": int(threads[-1] - threads[len(threads) // 2]),
        "ms_a_step_first": round(1e3 * float(np.median(seconds[1 : tenth + 1])), 3),
        "ms_a_step_last": round(1e3 * float(np.median(seconds[-tenth:])), 3),
        "history_bytes_a_round": round(size / options.rounds, 1),
        "policy_json_bytes": files["policy.json"],
        "trainer_state_json_bytes": files["trainer_state.json"],
        "checkpoint_bytes": sum(files.values()),
    }
    for key, most in (
        *(("memory_bytes_a_round", options.most_bytes), ("objects_a_round", options.most_objects)),
        *(("handles_more", 0), ("threads_more", 0)),
    ):
        if row[key] > most:
            wrong.append(f"{key} is {row[key]}, at most {most} was expected")
    if row["ms_a_step_last"] > options.most_slower * row["ms_a_step_first"]:
        wrong.append(f"steps slow down from {row['ms_a_step_first']} to {row['ms_a_step_last']} ms")
    row["verdict"] = "; ".join(wrong) or "flat"
    append_rows(options.out, [row | where])
    print(" ".join(f"{k} {v}" for k, v in row.items()))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
