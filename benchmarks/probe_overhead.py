"""What OPTIMA's probes and bookkeeping cost. Goal: at most 3 % of training time at P = 100 with 4 probe batches.

Trains a CoCa of the shipped teacher's size (untrained: the work is the same) by the recipe ``optima-scenes`` and times
every turn of a round (probe loss, reward, posterior, choice, log) apart from the steps. ``steady_share`` is the median
turn in the middle of the run over the median time of P steps and one turn; ``start_share`` is what drawing the probe
set, with the teacher's outputs, adds to a run of 600 steps.

    OMP_NUM_THREADS=1 python benchmarks/probe_overhead.py

Steps between turns do not change what a turn costs, so rounds of ``--round-steps`` are run and P = 100 is reckoned from
them; ``--round-steps 100 --steps 500`` runs it out. Appends to ``benchmarks/results/probe_overhead.csv``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from _record import RESULTS, append_rows, origin
from _scenes import untrained_teacher
from _timing import Clock
from transformers import TrainerCallback

from potstill.recipe import load_recipe
from potstill.run import prepare

GOAL, P, STEPS = 0.03, 100, 600


class Steps(TrainerCallback):
    """Times whole steps, turns of rounds included."""

    def __init__(self):
        self.clock = Clock()

    def on_train_begin(self, args, state, control, **kwargs):
        self.clock.start()

    def on_step_end(self, args, state, control, **kwargs):
        self.clock.stop()
        self.clock.start()


def measure(steps: int, round_steps: int, probe_batches: int, batch_size: int) -> dict[str, object]:
    changes = {
        "train.steps": steps,
        "train.batch_size": batch_size,
        "train.threads": 1,
        "train.checkpoint_every": steps + 1,
        "policy.round_steps": round_steps,
        "policy.probe_batches": probe_batches,
    }
    recipe = load_recipe("optima-scenes", [f"{key}={value}" for key, value in changes.items()])
    turns, logs, callback = Clock(), Clock(), Steps()
    with tempfile.TemporaryDirectory() as folder:
        history = Path(folder) / "history.jsonl"
        built = prepare(recipe, Path(folder), teacher=untrained_teacher(), history=history, callbacks=[callback])
        rounds, history_of = built.trainer.rounds, built.trainer.history
        before_step, add = rounds.before_step, history_of.add

        def timed_turn(step: int) -> dict[str, Any] | None:
            turning = step % round_steps == 0
            if turning:
                turns.start()
            event = before_step(step)
            if turning:
                turns.stop()
            return event

        def timed_log(event: dict[str, Any]) -> None:
            if event["event"] != "round":
                return add(event)
            logs.start()
            add(event)
            logs.stop()

        rounds.before_step, history_of.add = timed_turn, timed_log
        built.trainer.train()
    row: dict[str, object] = {
        "goal": GOAL,
        "P": P,
        "probe_batches": probe_batches,
        "batch_size": batch_size,
        "steps": steps,
        "turns": len(turns.wall),
    }
    for kind, all_steps, all_turns, all_logs in (
        ("wall", callback.clock.wall, turns.wall, logs.wall),
        ("cpu", callback.clock.processor, turns.processor, logs.processor),
    ):
        step = statistics.median(t for i, t in enumerate(all_steps) if i % round_steps and i > 3)
        first, turn = all_turns[0], statistics.median(all_turns[1:]) + statistics.median(all_logs)
        row |= {
            f"{kind}_steady_share": round(turn / (P * step + turn), 4),
            f"{kind}_start_share": round((first - turn) / (STEPS * step), 4),
            f"{kind}_step_ms": round(1e3 * step, 1),
            f"{kind}_turn_ms": round(1e3 * turn, 1),
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=49)
    parser.add_argument("--round-steps", type=int, default=8)
    parser.add_argument("--probe-batches", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULTS / "probe_overhead.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    where = origin()
    row = measure(options.steps, options.round_steps, options.probe_batches, options.batch_size)
    append_rows(options.out, [row | where])
    print(" ".join(f"{k} {v}" for k, v in row.items()))


if __name__ == "__main__":
    main()
