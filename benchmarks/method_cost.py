"""What a step of every method costs, in time and memory, against a step of plain distillation on the same task.

A step is all that training does: data, teacher, student, loss, backward, optimiser. Methods are measured in turn with
``kd_kl`` before each, on the CNN that names emoji; the goal for the methods of the leaderboard is 1.3 times its time.

    OMP_NUM_THREADS=1 python benchmarks/method_cost.py

Replaces ``benchmarks/results/method_cost.csv``: processor milliseconds of the median step, the ratio of the medians
over the repetitions, and the largest sum of live allocations in a step above what was live before.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _record import RESULTS, origin, write_rows
from _timing import peak_bytes
from leaderboard import GROUPS, SAME

from potstill.recipe import Recipe, load_recipe
from potstill.run.prepare import prepare
from potstill.systems.compare.budget import seconds_per_step
from potstill.systems.compare.execute import OWN_SETTINGS
from potstill.systems.compare.methods import apply_method, find_method, with_steps

STEPS_BEFORE = 3


def peak_of_step(recipe: Recipe) -> int:
    """Return the peak of one micro-batch, forward and backward, after some steps."""
    found, calls = [], 0
    with tempfile.TemporaryDirectory() as folder:
        _, stage = next(iter(with_steps(recipe, 8).staged()))
        built = prepare(stage, Path(folder))
        step = built.trainer.training_step

        def watched(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls != STEPS_BEFORE + 1:
                return step(*args, **kwargs)
            kept = []
            found.append(peak_bytes(lambda: kept.append(step(*args, **kwargs))))
            return kept[0]

        built.trainer.training_step = watched
        built.trainer.train()
        built.close()
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="kd-emoji-cnn")
    parser.add_argument("--methods", help="with commas, the reference first; those of the leaderboard if left out")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="A.B=C")
    parser.add_argument("--out", type=Path, default=RESULTS / "method_cost.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    methods = options.methods.split(",") if options.methods else GROUPS["main"].methods_for(options.recipe)
    base = load_recipe(options.recipe, [*SAME, *OWN_SETTINGS, "train.warmup_steps=0", *options.overrides])
    recipes = {m.name: apply_method(m, base) for m in map(find_method, methods)}
    plain, *others = recipes
    memory = {name: peak_of_step(recipe) for name, recipe in recipes.items()}
    rows, where = [], origin()
    for name in (plain, *others):
        pairs = [
            [seconds_per_step(recipes[one], time.process_time) for one in (plain, name)]
            for _ in range(options.repetitions)
        ]
        ours, theirs = statistics.median(b for _, b in pairs), statistics.median(a for a, _ in pairs)
        row = {
            **{"recipe": options.recipe, "method": name, "cpu_ms": round(1000 * ours, 2)},
            **{"reference_cpu_ms": round(1000 * theirs, 2), "time_ratio": round(ours / theirs, 3)},
            **{"lowest": round(min(b / a for a, b in pairs), 3), "highest": round(max(b / a for a, b in pairs), 3)},
            **{"peak_mb": round(memory[name] / 1e6, 2), "memory_ratio": round(memory[name] / memory[plain], 3)},
        }
        rows.append({**row, **where})
        print(" ".join(f"{k} {v}" for k, v in row.items()), flush=True)
        write_rows(options.out, rows)


if __name__ == "__main__":
    main()
