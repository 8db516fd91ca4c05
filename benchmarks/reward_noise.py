"""How much does the arm decide of a round's reward, and how many rounds does it take to tell the arms apart?

Runs the recipe of ``optima_scenes.py`` with arms drawn at random, keeps what the probe set says after every round, and
fits, for each yardstick of the reward,

    reward of a round = smooth trend of the run (a cubic per seed) + effect of the arm played + noise

by least squares over all rounds but the first few (they are steeper than any cubic). If the best arm's effect exceeds
another's by d and the noise has the standard deviation s, two means of n plays each differ by twice their standard
error when n = 8 s² / d²: so many plays of each arm does any policy need before it can know. Run from the repository
root::

    OMP_NUM_THREADS=1 python benchmarks/reward_noise.py --seeds 0-4 --shard 0/2 &
    OMP_NUM_THREADS=1 python benchmarks/reward_noise.py --seeds 0-4 --shard 1/2 &
    python benchmarks/reward_noise.py --summary

A row per round goes to ``benchmarks/results/reward_noise_runs.csv``, the fits to ``reward_noise.csv``.
"""

from __future__ import annotations

import argparse
import copy
from collections import defaultdict
from typing import Any

import numpy as np
from _record import RESULTS, SHARED, append_rows, origin, read_rows, summary_of, write_rows

YARDSTICKS = ("prediction", "reference", "per_term")
SKIPPED = 6  # rounds at the start


def run(options: argparse.Namespace) -> None:
    from _scenes import Bench, base_recipe, budget_of, seeds_of, shard_of

    from potstill.train.probe import reward_of

    base = base_recipe(options)
    base["policy"].update(name="uniform")
    budget = budget_of(base, options)
    bench = Bench(options)
    where = origin()
    for seed in shard_of(seeds_of(options.seeds), options.shard):
        if (budget["setting"], str(seed)) in {(r["setting"], r["seed"]) for r in read_rows(options.out)}:
            continue
        recipe = copy.deepcopy(base)
        recipe["seed"] = seed
        loss = bench.run(recipe)["L_pred"]
        rows = []
        for before, after in zip(bench.rounds, bench.rounds[1:]):
            row = {**budget, "seed": seed, "round": after["round"], "arm": after["arm"]}
            for kind in YARDSTICKS:
                row[kind] = f"{reward_of(before['probe'], after['probe'], bench.module, kind):.6f}"
            rows.append(row | where)
        append_rows(options.out, rows)
        print(f"seed {seed}: {len(rows)} rounds, L_pred {loss}", flush=True)


def fit(rows: list[dict[str, str]], kind: str) -> dict[str, Any]:
    """Return the arms' effects (relative to their mean) with standard errors, and the noise, by least squares."""
    rows = [r for r in rows if int(r["round"]) > SKIPPED]
    seeds, arms = sorted({r["seed"] for r in rows}), sorted({r["arm"] for r in rows})
    last = max(int(r["round"]) for r in rows)
    design = np.zeros((len(rows), 4 * len(seeds) + len(arms) - 1))
    for i, r in enumerate(rows):
        time = 2 * (int(r["round"]) - SKIPPED) / (last - SKIPPED) - 1
        start = 4 * seeds.index(r["seed"])
        design[i, start : start + 4] = np.polynomial.legendre.legvander([time], 3)[0]
        # The arms' effects add up to 0: the last one is minus the sum of the others.
        arm = arms.index(r["arm"])
        design[i, 4 * len(seeds) :] = -1 if arm == len(arms) - 1 else np.eye(len(arms) - 1)[arm]
    reward = np.array([float(r[kind]) for r in rows])
    solution = np.linalg.lstsq(design, reward, rcond=None)[0]
    rest = reward - design @ solution
    variance = rest @ rest / (len(rows) - design.shape[1])
    contrast = np.vstack([np.eye(len(arms) - 1), -np.ones(len(arms) - 1)])
    covariance = contrast @ np.linalg.inv(design.T @ design)[4 * len(seeds) :, 4 * len(seeds) :] @ contrast.T
    effects = contrast @ solution[4 * len(seeds) :]
    return {
        "arms": {a: (effects[i], (variance * covariance[i, i]) ** 0.5) for i, a in enumerate(arms)},
        "noise": variance**0.5,
        "rounds": len(rows),
        "seeds": len(seeds),
    }


def summarise(runs: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Return a row per setting, yardstick and arm."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for r in runs:
        groups[tuple(r[k] for k in SHARED)].append(r)
    rows = []
    for key, mine in groups.items():
        for kind in YARDSTICKS:
            found = fit(mine, kind)
            best = max(effect for effect, _ in found["arms"].values())
            for arm, (effect, error) in found["arms"].items():
                gap = best - effect
                rows.append(
                    {
                        **dict(zip(SHARED, key)),
                        "yardstick": kind,
                        "arm": arm,
                        "seeds": found["seeds"],
                        "rounds": found["rounds"],
                        "effect": f"{effect:+.5f}",
                        "stderr": f"{error:.5f}",
                        "noise_sd": f"{found['noise']:.5f}",
                        "plays_to_tell_from_best": round(8 * found["noise"] ** 2 / gap**2) if gap else "",
                    }
                    | {k: mine[0][k] for k in origin()}
                )
    return rows


def main() -> None:
    from _scenes import add_options

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, steps=600, round_steps=10, hidden_weight=0.01, out=RESULTS / "reward_noise_runs.csv")
    options = parser.parse_args()
    if not options.summary:
        return run(options)
    rows = summarise(read_rows(options.out))
    write_rows(summary_of(options.out), rows)
    for r in rows:
        print(f"{r['yardstick']:10} {r['arm']:20} {r['effect']} ± {r['stderr']} noise {r['noise_sd']} "
              f"plays to tell it from the best: {r['plays_to_tell_from_best']}")  # fmt: skip


if __name__ == "__main__":
    main()
