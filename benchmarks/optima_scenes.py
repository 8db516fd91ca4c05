"""The evidence for OPTIMA on the four tasks of the emoji scenes: which policy leaves the smallest loss at equal steps.

Every run is the packaged recipe ``optima-scenes`` with another policy. A seed sets the order of the data, the start of
what is not copied and the policy's random numbers, for all systems alike, so differences are paired. Systems:

- ``optima``, ``optima-reference``, ``optima-per_term``: by the reward's yardstick (the first: prediction alone);
- ``thompson``, ``greedy``, ``uniform``, ``round_robin``, ``fixed:<module>``;
- ``all``: every module's hidden states always; ``all/3``: the same, each at a third of the weight, so that the hidden
  terms weigh together what a single arm weighs;
- ``none``: no hidden states, plain logit distillation;
- ``=optima``, ``=uniform``, ``=round_robin``, ``=fixed:<module>``: a single arm carries the hidden weight that ``all``
  spreads over its modules (``policy.equal_hidden_weight``).

Run from the repository root, as often as needed (finished runs are skipped), in several processes if there are cores::

    OMP_NUM_THREADS=1 python benchmarks/optima_scenes.py --seeds 0-4 --shard 0/2 &
    OMP_NUM_THREADS=1 python benchmarks/optima_scenes.py --seeds 0-4 --shard 1/2 &
    python benchmarks/optima_scenes.py --summary

A row per run goes to ``benchmarks/results/optima_scenes_runs.csv``. The summary has, for each system and measure, the
mean with its 95 % interval and the paired differences to ``optima``, ``none`` (plain distillation), ``uniform`` and
``all`` with theirs, as CSV and, the main measures, as a markdown table.
"""

from __future__ import annotations

import argparse
import copy
from collections import defaultdict
from typing import Any

from _record import RESULTS, SHARED, append_rows, origin, read_rows, summary_of, write_rows
from _summary import summarise

SINGLE = ("image_encoder", "text_decoder", "multimodal_decoder")
FIXED = tuple(f"fixed:{m}" for m in SINGLE)
EQUAL = tuple(f"={s}" for s in ("optima", "uniform", "round_robin", *FIXED))
# The most telling come first: a benchmark cut short then still compares what matters.
SYSTEMS = ("optima", "none", "uniform", "all", "all/3", *FIXED, "round_robin", "thompson", "greedy",
           "optima-reference", "optima-per_term", *EQUAL)  # fmt: skip
AGAINST = ("optima", "none", "uniform", "all")
TASKS = ("caption", "vqa", "entailment", "nlvr2")
MEASURES = (
    "L_pred",
    *(f"{kind}_{task}" for kind in ("kl", "score") for task in TASKS),
    *(f"{when}share_{module}" for when in ("", "late_") for module in SINGLE),
    "train_seconds",
    "cpu_seconds",
)
DIGITS = {"L_pred": 4, "train_seconds": 0, "cpu_seconds": 0}


def recipe_of(base: dict[str, Any], system: str, seed: int) -> dict[str, Any]:
    """Return the base recipe with the policy of one system."""
    recipe = copy.deepcopy(base)
    recipe["seed"] = seed
    name = system.removeprefix("=")
    if name == "none":
        recipe["objectives"] = [o for o in recipe["objectives"] if o["loss"] != "hidden"]
        recipe["policy"] = None
        return recipe
    policy = recipe["policy"]
    policy["equal_hidden_weight"] = system != name
    if name.startswith("fixed:"):
        policy.update(name="fixed", arm=name.removeprefix("fixed:"))
    elif name == "all/3":
        policy.update(name="all")
        hidden = next(o for o in recipe["objectives"] if o["loss"] == "hidden")
        hidden["weight"] /= len(SINGLE)
    elif name.startswith("optima"):
        policy.update(name="optima", reward=name.partition("-")[2] or "prediction")
    else:
        policy.update(name=name)
        if name in ("thompson", "greedy"):
            policy["gamma"] = 1.0  # they forget nothing
    return recipe


def run(options: argparse.Namespace) -> None:
    from _scenes import Bench, base_recipe, budget_of, seeds_of, shard_of

    base = base_recipe(options)
    budget = budget_of(base, options)
    systems = options.systems.split(",") if options.systems else SYSTEMS
    for system in systems:
        if system not in SYSTEMS:
            raise SystemExit(f'unknown system "{system}"; there are {", ".join(SYSTEMS)}')
    bench = Bench(options)
    where = origin()
    jobs = shard_of([(system, seed) for seed in seeds_of(options.seeds) for system in systems], options.shard)
    for system, seed in jobs:
        done = {(r["setting"], r["system"], int(r["seed"])) for r in read_rows(options.out)}
        if (budget["setting"], system, seed) in done:
            continue
        row = {
            **budget,
            "system": system,
            "seed": seed,
            **bench.run(recipe_of(base, system, seed)),
        }
        append_rows(options.out, [row | where])
        print(
            " ".join(f"{k} {row[k]}" for k in ("system", "seed", "L_pred", "train_seconds", "cpu_seconds")), flush=True
        )


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return a table per setting: L_pred, its paired differences and the task scores, with 95 % intervals."""
    cells: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        cells[row["setting"], row["system"]][row["measure"]] = row
    text = []
    for setting in dict.fromkeys(s for s, _ in cells):
        table = {system: found for (s, system), found in cells.items() if s == setting}
        first = next(iter(table.values()))["L_pred"]
        text += [
            f"Setting {setting}: {first['steps']} steps of {first['batch_size']}, rounds of "
            f"{first['round_steps']}, hidden weight {first['hidden_weight']}, student: "
            f"{first['student']}. Means ± 95 % interval over seeds; differences are "
            "paired by seed, bold where the interval excludes 0. Lower L_pred is better.",
            "",
            "| system | seeds | L_pred | minus optima | minus none | " + " | ".join(TASKS) + " |",
            "|" + "---|" * (5 + len(TASKS)),
        ]
        for system, found in table.items():
            loss = found["L_pred"]
            gaps = []
            for other in ("optima", "none"):
                gap = f"{loss[f'minus_{other}']} ± {loss[f'minus_{other}_ci95']}" if loss[f"minus_{other}"] else ""
                gaps.append(f"**{gap}**" if loss[f"minus_{other}_clear"] == "yes" else gap)
            scores = [f"{found[f'score_{t}']['mean']} ± {found[f'score_{t}']['ci95']}" for t in TASKS]
            row = [f"`{system}`", str(loss["seeds"]), f"{loss['mean']} ± {loss['ci95']}", *gaps, *scores]
            text.append("| " + " | ".join(row) + " |")
        text.append("")
    return "\n".join(text)


def main() -> None:
    from _scenes import add_options

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, steps=600, round_steps=10, hidden_weight=0.01, out=RESULTS / "optima_scenes_runs.csv")
    parser.add_argument("--systems", help="with commas; all of them if left out")
    options = parser.parse_args()
    if not options.summary:
        return run(options)
    rows = summarise(
        read_rows(options.out), shared=SHARED, systems=SYSTEMS, measures=MEASURES, against=AGAINST, digits=DIGITS
    )
    summary = summary_of(options.out)
    write_rows(summary, rows)
    text = markdown(rows)
    summary.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
