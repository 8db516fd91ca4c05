"""How benchmarks sum up runs of several systems over the same seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from _record import origin


def summarise(
    runs: Sequence[Mapping[str, str]],
    *,
    shared: Sequence[str],
    systems: Sequence[str],
    measures: Sequence[str],
    against: Sequence[str],
    digits: Mapping[str, int] | None = None,
) -> list[dict[str, Any]]:
    """Return a row per setting, system and measure: mean, 95 % interval, and paired differences to some systems.

    Args:
        runs: One row each, with "system" and "seed"; an empty value was not measured.
        shared: Columns that runs to be compared have in common.
        systems: All systems, in the order of the rows.
        measures: Columns to sum up.
        against: Systems to compare with; paired over the seeds both have.
        digits: Decimals of a measure; 4 where it is not named.
    """
    from potstill.evaluate.statistics import mean_interval, paired_interval

    by_setting: dict[tuple[str, ...], dict[str, dict[str, dict[str, str]]]] = defaultdict(lambda: defaultdict(dict))
    for r in runs:
        by_setting[tuple(r[k] for k in shared)][r["system"]][r["seed"]] = r
    rows = []
    for key, found in by_setting.items():
        for system in sorted(found, key=systems.index):
            mine = found[system]
            for measure in measures:
                values = {seed: float(r[measure]) for seed, r in mine.items() if r[measure] != ""}
                if len(values) < 2:
                    continue
                places = (digits or {}).get(measure, 4)
                interval = mean_interval(list(values.values()))
                row = {**dict(zip(shared, key)), "system": system, "measure": measure, "seeds": interval.n,
                       "mean": f"{interval.mean:.{places}f}", "ci95": f"{interval.half_width:.{places}f}"}  # fmt: skip
                for other in against:
                    rival = {s: float(r[measure]) for s, r in found.get(other, {}).items() if r[measure] != ""}
                    both = sorted(values.keys() & rival.keys())
                    row |= dict.fromkeys((f"minus_{other}", f"minus_{other}_ci95", f"minus_{other}_clear"), "")
                    if other != system and len(both) > 1:
                        gap = paired_interval([values[s] for s in both], [rival[s] for s in both])
                        row[f"minus_{other}"] = f"{gap.mean:+.{places}f}"
                        row[f"minus_{other}_ci95"] = f"{gap.half_width:.{places}f}"
                        row[f"minus_{other}_clear"] = "yes" if gap.excludes_zero else "no"
                rows.append(row | {k: mine[min(mine)][k] for k in origin()})
    return rows
