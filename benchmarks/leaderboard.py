"""The leaderboard: every method at equal steps on two tasks, naming emoji and reading digits, over five seeds.

A thin shell around ``potstill compare``: it asks for the same methods on all tasks of a group and copies what comes out
to ``benchmarks/results``. Run from the repository root, as often as needed (finished runs are skipped)::

    OMP_NUM_THREADS=1 python benchmarks/leaderboard.py                    # the group "main"
    OMP_NUM_THREADS=1 python benchmarks/leaderboard.py --group web
    OMP_NUM_THREADS=1 python benchmarks/leaderboard.py --tasks kd-digits  # a part of a group

``leaderboard_runs.csv`` has a row per run, ``leaderboard.csv`` one per task, budget, measure and method; each row says
on which machine, when and from which commit. Rows of other tasks stay. ``--trials 8`` tunes every method first. Methods
that need more than an output and labels are recipes of their own, laid over the task: those of the catalogue and those
in ``methods/``. Methods made for a situation have tasks with it in ``tasks/``, and a group with their rivals.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _record import RESULTS, origin, read_rows, summary_of, write_rows

HERE = Path(__file__).parent


def files(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{HERE}/{folder}/{name}.yaml" for name in names)


@dataclass(frozen=True)
class Group:
    """Tasks on which the same methods are compared; the first is what the others are compared with.

    A name of the catalogue stands for its recipe's objectives, a file for those in it.
    """

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    budget: str = "steps=400"
    overrides: tuple[str, ...] = ()
    not_for: tuple[tuple[str, str], ...] = ()
    """Task and method that do not go together."""

    def methods_for(self, task: str) -> list[str]:
        return [method for method in self.methods if (Path(task).stem, Path(method).stem) not in self.not_for]


METHODS = (
    *("kd_kl", "labels", "dkd", "dist_loss", "reverse_kl", "generalized_jsd", "tv_distance"),
    *("pld", "sinkd", "kdpp-nd", "kd3", *files("methods", "lelp", "vlm-ood")),
    *files("methods", "hinton", "hinton+sinkd", "hinton+trg", "hinton+mi-alpha"),
)
# As many pictures as both tasks have: surveys and selections look at all of them.
SAME = ("data.pool=7000", "train.checkpoint_every=400")
GROUPS = {
    # LELP wants fewer classes than the embeddings are wide, in the teacher.
    "main": Group(("kd-digits", "kd-emoji-cnn"), METHODS, overrides=SAME, not_for=(("kd-emoji-cnn", "lelp"),)),
    "web": Group(
        files("tasks", "web-digits", "web-emoji"),
        ("kd_kl", *files("methods", "hinton"), "kd3", *files("methods", "kd3-balanced")),
    ),
    "two classes": Group(files("tasks", "parity-digits"), ("kd_kl", "labels", "lelp"), "steps=1500"),
    "bought labels": Group(
        files("tasks", "bought-digits", "bought-emoji"),
        (
            *files("methods", "buy-random", "buy-margin", "buy-entropy", "buy-robust_active", "buy-robust_told"),
            "labels",
        ),
        "steps=300",
        # On the emoji the teacher's error is measured on samples it has not seen.
        not_for=(("bought-emoji", "buy-robust_told"),),
    ),
    "new classes": Group(
        files("tasks", "novel-digits", "novel-emoji"), files("methods", "discovery", "crkd-ncd"), "steps=900"
    ),
    # On digits these two need the teachers that tasks/teach-digits-*.yaml make.
    "several teachers": Group(
        files("tasks", "two-teachers-digits", "two-teachers-emoji"),
        ("kd_kl", "labels", *files("methods", "mean-of-teachers", "meal-v2", "meal-v2-shrink-2")),
        not_for=(("two-teachers-digits", "meal-v2"), ("two-teachers-emoji", "meal-v2-shrink-2")),
    ),
    "tokens of two teachers": Group(
        files("tasks", "vit-digits", "vit-emoji"),
        ("kd_kl", "labels", *files("methods", "hybrid-both", "hybrid-feature", "hybrid-relation")),
        "steps=1000",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", choices=list(GROUPS), default="main")
    parser.add_argument("--tasks", help="recipes, with commas; those of the group if left out")
    parser.add_argument("--methods", help="methods, with commas, the reference first; those of the group if left out")
    parser.add_argument("--budget", help="the group's if left out")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--trials", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="A.B=C")
    parser.add_argument("--folder", type=Path, default=Path("runs/leaderboard"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=RESULTS / "leaderboard_runs.csv")
    options = parser.parse_args()
    group = GROUPS[options.group]
    summary = summary_of(options.out)
    made = origin()

    from potstill.systems.compare import compare

    failures = 0
    for task in options.tasks.split(",") if options.tasks else group.tasks:
        done = compare(
            [task],
            options.methods.split(",") if options.methods else group.methods_for(task),
            budget=options.budget or group.budget,
            out=options.folder / Path(task).stem,
            seeds=options.seeds,
            jobs=options.jobs,
            trials=options.trials,
            overrides=[*group.overrides, *options.overrides],
            progress=tell,
        )
        # A run says itself where it was made: it may be older than this call, or come from another machine.
        replace(options.out, [{k: rounded(v) for k, v in row.items()} for row in done.rows])
        replace(summary, [{**{k: rounded(v) for k, v in row.items()}, **made} for row in done.summary])
        print(f"{options.out}\n{summary}\n{done.page}")
        failures += len(done.failures)
    if failures:
        raise SystemExit(f"{failures} runs failed; the same command tries them again")


def replace(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows in the place of those of the same recipe and budget; others stay. A task has the columns it has."""
    here = {(row["recipe"], row["budget"]) for row in rows}
    kept = [row for row in read_rows(path) if (row["recipe"], row["budget"]) not in here]
    together = [*kept, *rows]
    columns = dict.fromkeys(name for row in together for name in row)
    write_rows(path, [{name: row.get(name, "") for name in columns} for row in together])


def rounded(value: Any) -> Any:
    """Six digits are more than five seeds can tell; identifiers and counts stay whole."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def tell(event: Mapping[str, Any]) -> None:
    if event["event"] != "plan":
        print(event["event"], event["job"], event.get("why", ""), flush=True)


if __name__ == "__main__":
    main()
