"""How often the recommender is right about a task that it has not seen, on the runs of the leaderboard.

Every task (a recipe with a budget) is left out once; beside the recommender stand the methods that are best on average
over the other tasks, and a blind choice. Takes seconds.

    python benchmarks/auto_distiller.py

Replaces ``benchmarks/results/auto_distiller.csv``: a row per task and number of suggestions, and their mean.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from _record import RESULTS, origin, write_rows

from potstill.systems import AutoDistiller
from potstill.systems.compare.recommend import runs_of

KEYS = ("hit", "regret", "average_hit", "average_regret", "blind_hit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", default=[RESULTS / "leaderboard_runs.csv"])
    parser.add_argument("--suggestions", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--out", type=Path, default=RESULTS / "auto_distiller.csv")
    options = parser.parse_args()
    runs = [run for path in options.runs for run in runs_of(path)]
    rows, where = [], origin()
    for n in options.suggestions:
        found = AutoDistiller().leave_one_task_out(runs, n)
        for row in [*found["tasks"], {"task": "mean", "pipelines": "", **{key: found[key] for key in KEYS}}]:
            values = {key: round(float(row[key]), 4) for key in KEYS}
            kept = {"n": n, "task": row["task"], "tasks": len(found["tasks"]), "methods": row["pipelines"]}
            rows.append({**kept, **values, **where})
            print(" ".join(f"{k} {v}" for k, v in {**kept, **values}.items()))
    write_rows(options.out, rows)


if __name__ == "__main__":
    main()
