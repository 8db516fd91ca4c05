"""Scores of teachers on every split of their data.

    python benchmarks/teacher_scores.py [--model coca-scenes] [--samples 4000]
    python benchmarks/teacher_scores.py --model emoji-vit emoji-cnn --recipe kd-emoji --out emoji_teacher_scores.csv \\
        --splits test heldout_vendor
    python benchmarks/teacher_scores.py --model digits-cnn --recipe kd-digits --out digits_teacher_scores.csv \\
        --splits test heldout_style
    python benchmarks/teacher_scores.py --model runs/vl-t5/student --recipe teach-vl-t5 --out vl_t5_scores.csv \\
        --splits test heldout_vendor heldout_pairs heldout_directions

Replaces benchmarks/results/teacher_scores.csv, or the file named.
"""

from __future__ import annotations

import argparse
import itertools

import torch
from _record import RESULTS, origin, write_rows

from potstill.evaluate import evaluate_tasks, main_score
from potstill.models.load import load_model
from potstill.recipe import load_recipe
from potstill.run.build import build_source

SPLITS = ("test", "heldout_vendor", "heldout_pairs", "heldout_language")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["coca-scenes"])
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--recipe", default="optima-scenes", help="whose data is measured on")
    parser.add_argument("--splits", nargs="+", default=SPLITS)
    parser.add_argument("--out", default="teacher_scores.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    where = origin()
    source = build_source(load_recipe(options.recipe))
    rows = []
    for name, split in itertools.product(options.model, options.splits):
        model, dataset = load_model(name, where="--model"), source.split(split, options.samples)
        for task, scores in evaluate_tasks(model, dataset, source.collator).items():
            row = {"model": name, "split": split, "task": task, "samples": scores["samples"]}
            error = scores.get("stderr")
            rows.append({**row, "kind": "all", "score": f"{main_score(scores):.4f}", "stderr": f"{error:.4f}", **where})
            others = {k: scores[k] for k in ("macro_accuracy", "top5_accuracy", "ece") if k in scores}
            for kind, value in {**others, **scores.get("kinds", {})}.items():
                rows.append({**row, "kind": kind, "score": f"{value:.4f}", "stderr": "", **where})
            print(f"{name:16} {split:18} {task:12} {main_score(scores):.4f} ± {error:.4f}", flush=True)
    write_rows(RESULTS / options.out, rows)


if __name__ == "__main__":
    main()
