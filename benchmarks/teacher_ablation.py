"""What the teacher's second stage, pointing, does: scores by kind of two finished runs of ``teach-scenes``.

    potstill distill teach-scenes --out runs/teacher                              # with it, some two hours
    git checkout 21e265f && potstill distill teach-scenes --out runs/without      # the recipe before it had the stage
    python benchmarks/teacher_ablation.py --with runs/teacher --without runs/without

Reads metrics.json, history.jsonl and environment.json of each. Replaces benchmarks/results/teacher_ablation.csv.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from _record import RESULTS, origin, write_rows

from potstill.evaluate import main_score
from potstill.recipe import load_recipe


def rows_of(run: Path, name: str) -> list[dict[str, Any]]:
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    taught = [  # naming alone answers no question
        (stage, recipe.train)
        for stage, recipe in load_recipe(run / "recipe.yaml").staged()
        if any(o.loss == "model_loss" for o in recipe.objectives)
    ]
    samples = sum(train.steps * train.batch_size for _, train in taught)
    commit = environment["commit"]
    commit = commit[:7] + ("+changes" if commit.endswith("+") else "")
    where = origin() | {"commit": commit, "threads": environment["threads"]}
    rows = []
    for task, scores in metrics["models"]["student"]["tasks"].items():
        for kind, score in {"all": main_score(scores), **scores.get("kinds", {})}.items():
            shared = {"pointing": name, "stages": "+".join(stage for stage, _ in taught), "training_samples": samples}
            rows.append({**shared, "task": task, "kind": kind, "score": f"{score:.4f}", **where})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--with", type=Path, required=True, dest="taught", help="run folder with pointing")
    parser.add_argument("--without", type=Path, required=True, help="run folder without")
    parser.add_argument("--out", type=Path, default=RESULTS / "teacher_ablation.csv")
    options = parser.parse_args()
    write_rows(options.out, [*rows_of(options.taught, "with"), *rows_of(options.without, "without")])


if __name__ == "__main__":
    main()
