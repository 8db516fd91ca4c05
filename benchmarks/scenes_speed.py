"""How fast scenes and whole batches are made, in one process on one thread.

    python benchmarks/scenes_speed.py

Rates are the best of five rounds, by wall clock and by processor time: on a shared machine the second is the one to
compare. Appends to benchmarks/results/scenes_speed.csv.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
from _record import RESULTS, append_rows, origin

from potstill.data.scenes import SceneCollator, SceneDataset, build_tokenizer

BATCH = 96


def best_rates(work: Callable[[int], int], rounds: int = 5, batches: int = 25) -> tuple[float, float]:
    """Return items a second by wall clock and by processor time, the best round of each."""
    walls, processors = [], []
    for turn in range(rounds + 1):
        wall, processor = time.perf_counter(), time.process_time()
        items = sum(work(turn * batches + i) for i in range(batches))
        if turn:  # the first round warms up
            walls.append(items / (time.perf_counter() - wall))
            processors.append(items / (time.process_time() - processor))
    return max(walls), max(processors)


def batch_indices(number: int) -> range:
    return range(number * BATCH, (number + 1) * BATCH)


def measure() -> list[tuple[str, float, float]]:
    rows = []
    tokenizer = build_tokenizer()
    for size in (48, 64, 96):
        captions = SceneDataset(tasks=("caption",), image_size=size)
        work = lambda n, data=captions: len(data.__getitems__(batch_indices(n)))  # noqa: E731
        rows.append((f"scenes with caption, {size} px", *best_rates(work)))
        mixed = SceneDataset(image_size=size)
        collator = SceneCollator(tokenizer, mixed.task_labels)

        def full(n, data=mixed, collator=collator):
            return len(collator(data.__getitems__(batch_indices(n)))["sample_id"])

        rows.append((f"four tasks through the collator, {size} px", *best_rates(full)))
    pairs = SceneDataset(tasks=("nlvr2",), image_size=64)
    rows.append(("picture pairs, 64 px", *best_rates(lambda n: len(pairs.__getitems__(batch_indices(n))))))
    masked = SceneDataset(tasks=("segmentation",), image_size=64)
    rows.append(("scenes with masks, 64 px", *best_rates(lambda n: len(masked.__getitems__(batch_indices(n))))))
    return rows


def main() -> None:
    torch.set_num_threads(1)
    where = {"load": f"{os.getloadavg()[0]:.1f}"} | origin()
    for what, wall, processor in measure():
        print(f"{what:45} {wall:9.0f} a second, {processor:9.0f} a processor second")
        row = {"what": what, "per_second": round(wall), "per_processor_second": round(processor)}
        append_rows(RESULTS / "scenes_speed.csv", [row | where])


if __name__ == "__main__":
    main()
