"""The leaderboard: every method at equal steps on two tasks, naming emoji and reading digits, over five seeds.

A thin shell around ``potstill compare``: it asks for the same methods on all tasks and copies what comes out to
``benchmarks/results``. Run from the repository root, as often as needed (finished runs are skipped)::

    OMP_NUM_THREADS=1 python benchmarks/leaderboard.py

``leaderboard_runs.csv`` has a row per run, ``leaderboard.csv`` one per task, budget, measure and method; each row says
on which machine, when and from which commit. ``--trials 8`` tunes every method first. Methods that need more than an
output and labels are recipes of their own, laid over the task's: those of the catalogue and those in ``methods/``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _record import RESULTS, origin, summary_of, write_rows

HERE = Path(__file__).parent / "methods"
TASKS = ("kd-digits", "kd-emoji-cnn")
# The reference comes first. A name of the catalogue stands for its recipe's objectives, a file for those in it.
METHODS = (
    *("kd_kl", "labels", "dkd", "dist_loss", "reverse_kl", "generalized_jsd", "tv_distance"),
    *("pld", "sinkd", "kdpp-nd", "kd3"),
    *(f"{HERE}/{name}.yaml" for name in ("lelp", "vlm-ood")),
    *(f"{HERE}/{name}.yaml" for name in ("hinton", "hinton+sinkd", "hinton+trg", "hinton+mi-alpha")),
)
# As many pictures as both tasks have: surveys and selections look at all of them.
SAME = ("data.pool=7000", "train.checkpoint_every=400")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS), help="recipes, with commas")
    parser.add_argument("--methods", default=",".join(METHODS), help="methods, with commas; the first is the reference")
    parser.add_argument("--budget", default="steps=400")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--trials", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="A.B=C")
    parser.add_argument("--folder", type=Path, default=Path("runs/leaderboard"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=RESULTS / "leaderboard_runs.csv")
    options = parser.parse_args()
    summary = summary_of(options.out)
    made = origin()

    from potstill.systems.compare import compare

    done = compare(
        options.tasks.split(","),
        options.methods.split(","),
        budget=options.budget,
        out=options.folder,
        seeds=options.seeds,
        jobs=options.jobs,
        trials=options.trials,
        overrides=[*SAME, *options.overrides],
        progress=tell,
    )
    # A run says itself where it was made: it may be older than this call, or come from another machine.
    write_rows(options.out, [{k: rounded(v) for k, v in row.items()} for row in done.rows])
    write_rows(summary, [{**{k: rounded(v) for k, v in row.items()}, **made} for row in done.summary])
    print(f"{options.out}\n{summary}\n{done.page}")
    if done.failures:
        raise SystemExit(f"{len(done.failures)} runs failed; the same command tries them again")


def rounded(value: Any) -> Any:
    """Six digits are more than five seeds can tell; identifiers and counts stay whole."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def tell(event: Mapping[str, Any]) -> None:
    if event["event"] != "plan":
        print(event["event"], event["job"], event.get("why", ""), flush=True)


if __name__ == "__main__":
    main()
