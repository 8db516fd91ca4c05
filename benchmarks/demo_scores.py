"""Records what a finished demo measured: teacher, OPTIMA student and KD student, cost and scores.

    make demo DEMO_DIR=runs/demo
    python benchmarks/demo_scores.py runs/demo

Replaces benchmarks/results/demo_scores.csv.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from _record import RESULTS, origin, write_rows

from potstill.evaluate import main_score

RUNS = ("optima-scenes", "kd-scenes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="folder of the demo")
    parser.add_argument("--out", type=Path, default=RESULTS / "demo_scores.csv")
    options = parser.parse_args()
    models = {}
    for run in RUNS:
        found = json.loads((options.demo / run / "metrics.json").read_text(encoding="utf-8"))["models"]
        models |= {"teacher": models.get("teacher", found["teacher"]), run: found["student"]}
    environment = json.loads((options.demo / RUNS[0] / "environment.json").read_text(encoding="utf-8"))
    where = origin() | {"commit": environment["commit"][:7], "threads": environment["threads"]}
    rows = []
    for name, entry in models.items():
        cost = {k: entry["cost"][k] for k in ("parameters", "bytes", "flops_per_sample")}
        row = {"model": name, **cost, "ms_per_sample": f"{entry['cost']['ms_per_sample']:.3f}"}
        for task, scores in entry["tasks"].items():
            row |= {task: f"{main_score(scores):.4f}", f"{task}_stderr": f"{scores['stderr']:.4f}"}
        for task in entry["tasks"]:
            near = (entry["fidelity"] or {}).get(task)
            row[f"{task}_agreement"] = f"{near['agreement']:.4f}" if near else ""
        rows.append(row | where)
    write_rows(options.out, rows)


if __name__ == "__main__":
    main()
