"""Scores of the shipped teacher on every split of the scenes.

    python benchmarks/teacher_scores.py [--model coca-scenes] [--samples 4000]

Replaces benchmarks/results/teacher_scores.csv.
"""

from __future__ import annotations

import argparse

import torch
from _record import RESULTS, origin, write_rows

from potstill.evaluate import evaluate_tasks, main_score
from potstill.models.load import load_model
from potstill.recipe import load_recipe
from potstill.run.build import build_source

SPLITS = ("test", "heldout_vendor", "heldout_pairs", "heldout_language")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="coca-scenes")
    parser.add_argument("--samples", type=int, default=4000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    where = origin()
    source = build_source(load_recipe("optima-scenes"))
    model = load_model(options.model, where="--model")
    rows = []
    for split in SPLITS:
        dataset = source.split(split, options.samples)
        for task, scores in evaluate_tasks(model, dataset, source.collator).items():
            row = {"model": options.model, "split": split, "task": task, "samples": scores["samples"]}
            error = scores.get("stderr")
            rows.append({**row, "kind": "all", "score": f"{main_score(scores):.4f}", "stderr": f"{error:.4f}", **where})
            for kind, value in scores.get("kinds", {}).items():
                rows.append({**row, "kind": kind, "score": f"{value:.4f}", "stderr": "", **where})
            print(f"{split:18} {task:12} {main_score(scores):.4f} ± {error:.4f}", flush=True)
    write_rows(RESULTS / "teacher_scores.csv", rows)


if __name__ == "__main__":
    main()
