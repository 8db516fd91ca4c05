"""How many of the soft labels that were bought are wrong, from the runs of the leaderboard's group "bought labels".

    python benchmarks/leaderboard.py --group "bought labels"
    python benchmarks/bought_labels.py --folder runs/leaderboard

Replaces ``benchmarks/results/bought_labels.csv``: a row per task and selector, with the share of wrong labels among all
that were bought, the mean over seeds, its 95 % interval, and the difference to buying at random, paired by seed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from _record import RESULTS, origin, write_rows

from potstill.evaluate.statistics import mean_interval, paired_interval

TASKS = ("bought-digits", "bought-emoji")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/leaderboard"))
    options = parser.parse_args()
    rows, made = [], origin()
    for task in TASKS:
        found: dict[str, dict[str, float]] = {}
        for history in sorted(options.folder.glob(f"*/runs/{task}/buy-*/*/seed-*/history.jsonl")):
            shares = [share(json.loads(line)) for line in history.read_text().splitlines()]
            last = [wrong for wrong in shares if wrong is not None][-1]
            found.setdefault(history.parts[-4], {})[history.parts[-2]] = last
        plain = found.get("buy-random", {})
        for method, by_seed in found.items():
            both = sorted(by_seed.keys() & plain.keys())
            own = mean_interval(list(by_seed.values()))
            gap = paired_interval([by_seed[seed] for seed in both], [plain[seed] for seed in both])
            values = {"wrong": own.mean, "wrong_ci95": own.half_width}
            values |= {"minus_random": gap.mean, "minus_random_ci95": gap.half_width}
            rounded = {key: round(value, 4) for key, value in values.items()}
            rows.append({"task": task, "method": method, "seeds": len(by_seed), **rounded, **made})
            print(*(f"{k} {v}" for k, v in rows[-1].items() if k not in made))
    write_rows(RESULTS / "bought_labels.csv", rows)


def share(event: dict) -> float | None:
    """Return the share of wrong labels that a choice tells of."""
    return event.get("wrong") if event["event"] == "selection" else None


if __name__ == "__main__":
    main()
