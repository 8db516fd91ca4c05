"""Does OPTIMA leave a module alone that has nothing left to learn? One whose gain is known: none.

The student's image encoder is the teacher's, all layers copied, and frozen, so playing that arm cannot change the
student beyond what every arm does; the other two modules keep one layer each. A policy that finds out plays the image
encoder clearly less than 1/K of the rounds. Run from the repository root::

    OMP_NUM_THREADS=1 python benchmarks/optima_mechanism.py --seeds 0-4
    python benchmarks/optima_mechanism.py --summary

Each yardstick of the reward is tried, and ``uniform`` as the control. Shares are given over all rounds and over those
after the warm-up (which plays each arm equally often by design). A row per run goes to
``benchmarks/results/optima_mechanism_runs.csv``, the summary to ``optima_mechanism.csv``.
"""

from __future__ import annotations

import argparse
import copy
from collections import defaultdict
from typing import Any

from _record import RESULTS, SHARED, append_rows, origin, read_rows, summary_of, write_rows

SYSTEMS = ("reference", "per_term", "prediction", "uniform")
CONVERGED = "image_encoder"


def recipe_of(base: dict[str, Any], system: str, seed: int) -> dict[str, Any]:
    recipe = copy.deepcopy(base)
    recipe["seed"] = seed
    recipe["policy"].update(name="uniform") if system == "uniform" else recipe["policy"].update(reward=system)
    return recipe


def run(options: argparse.Namespace) -> None:
    from _scenes import MODULES, Bench, base_recipe, budget_of, seeds_of, shard_of

    from potstill.models.paths import expand_path

    systems = options.systems.split(",")
    if set(systems) - set(SYSTEMS):
        raise SystemExit(f"--systems: there are {', '.join(SYSTEMS)}")
    base = base_recipe(options)
    bench = Bench(options)
    depth = len(expand_path(bench.teacher, f"{CONVERGED}.blocks", side="teacher", where="teacher"))
    base["student"] = {"builder": "depth", "layers": {m: depth if m == CONVERGED else 1 for m in MODULES}}
    base["freeze"] = [CONVERGED] if options.frozen else []
    budget = budget_of(base, options)
    where = origin()
    for seed, system in shard_of([(n, s) for n in seeds_of(options.seeds) for s in systems], options.shard):
        done = {(r["setting"], r["system"], int(r["seed"])) for r in read_rows(options.out)}
        if (budget["setting"], system, seed) in done:
            continue
        row = {
            **budget,
            "frozen": "yes" if options.frozen else "no",
            "system": system,
            "seed": seed,
            **bench.run(recipe_of(base, system, seed)),
        }
        append_rows(options.out, [row | where])
        print(f"{system} seed {seed}: {CONVERGED} played in {row[f'late_share_{CONVERGED}']} of the rounds", flush=True)


def summarise(runs: list[dict[str, str]]) -> list[dict[str, Any]]:
    from potstill.evaluate.statistics import mean_interval

    groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for r in runs:
        groups[tuple(r[k] for k in (*SHARED, "frozen", "system"))].append(r)
    rows = []
    for key, mine in sorted(groups.items(), key=lambda item: (item[0][:-1], SYSTEMS.index(item[0][-1]))):
        arms = [k.removeprefix("share_") for k in mine[0] if k.startswith("share_")]
        for measure in (*(f"{w}share_{a}" for w in ("", "late_") for a in arms), "L_pred"):
            values = [float(r[measure]) for r in mine if r[measure] != ""]  # no round after the warm-up: no share
            if len(values) < 2:
                continue
            interval = mean_interval(values)
            row = dict(zip((*SHARED, "frozen", "system"), key))
            row |= {"measure": measure, "seeds": interval.n, "below_even_share": ""}
            row |= {"mean": f"{interval.mean:.4f}", "ci95": f"{interval.half_width:.4f}"}
            if "share_" in measure:
                row["below_even_share"] = "yes" if interval.high < 1 / len(arms) else "no"
            rows.append(row | {k: mine[0][k] for k in origin()})
    return rows


def main() -> None:
    from _scenes import add_options

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, steps=600, round_steps=5, hidden_weight=0.01, out=RESULTS / "optima_mechanism_runs.csv")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="with commas")
    parser.add_argument("--frozen", action=argparse.BooleanOptionalAction, default=True,
                        help="--no-frozen lets the copied image encoder train")  # fmt: skip
    options = parser.parse_args()
    if not options.summary:
        return run(options)
    rows = summarise(read_rows(options.out))
    write_rows(summary_of(options.out), rows)
    for row in rows:
        if row["measure"] == f"late_share_{CONVERGED}":
            print(f"{row['setting']} {row['system']:12} {row['mean']} ± {row['ci95']} ({row['seeds']} seeds), "
                  f"clearly below an even share: {row['below_even_share']}")  # fmt: skip


if __name__ == "__main__":
    main()
