"""From scores of single runs to means, intervals, paired tests and ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from potstill.errors import InputError, suggest
from potstill.evaluate.statistics import holm, mean_interval, paired_interval, paired_p, ranks

LOWER_IS_BETTER = ("kl",)

Rows = Sequence[Mapping[str, Any]]


def measures_of(rows: Rows) -> list[str]:
    """Return the columns that are summed up: the scores of all splits, and how far the student is from its teacher."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    found = ["score", *(n for n in names if n.startswith("score.")), "kl", "agreement"]
    return [name for name in found if any(row.get(name) is not None for row in rows)]


def summarise(rows: Rows, methods: Sequence[str], against: str | None = None) -> list[dict[str, Any]]:
    """Return a row per recipe, budget, measure and method; the best mean rank first.

    Differences are paired over the seeds that both methods have, p-values come from a paired t-test and are corrected
    (Holm) for the number of methods tested at once: those of one recipe, budget and measure. Ranks are over the seeds
    that all of these methods have. What a single seed cannot say is None.

    Args:
        rows: As ``row_of`` makes them.
        methods: All methods, in the order of the first column.
        against: The method the others are compared with; None = the first.

    Raises:
        InputError: ``against`` is not among the methods.
    """
    against = methods[0] if against is None else against
    if against not in methods:
        raise InputError(f'"{against}" is not compared', where="--against", hint=suggest(against, methods))
    found = []
    groups = dict.fromkeys((row["recipe"], row["budget"]) for row in rows)
    for recipe, budget in groups:
        mine = [row for row in rows if (row["recipe"], row["budget"]) == (recipe, budget)]
        for measure in measures_of(mine):
            values = {
                m: {r["seed"]: float(r[measure]) for r in mine if r["method"] == m and r.get(measure) is not None}
                for m in methods
            }
            values = {m: v for m, v in values.items() if v}
            group = _group(values, against, higher_is_better=measure not in LOWER_IS_BETTER)
            for row in group:
                name = row["method"]
                costs = {k: _mean([r.get(k) for r in mine if r["method"] == name]) for k in ("parameters", "seconds")}
                steps = next((r.get("steps") for r in mine if r["method"] == name), None)
                place = {"recipe": recipe, "budget": budget, "measure": measure}
                found.append({**place, **row, "steps": steps, **costs})
    return found


def _group(values: Mapping[str, Mapping[int, float]], against: str, *, higher_is_better: bool) -> list[dict[str, Any]]:
    placed = seed_ranks(values, higher_is_better=higher_is_better)
    rows = []
    for method, of_seed in values.items():
        scores = list(of_seed.values())
        interval = mean_interval(scores) if len(scores) > 1 else None
        row = {
            "method": method,
            "seeds": len(scores),
            "mean": sum(scores) / len(scores),
            "ci95": interval and interval.half_width,
            "std": interval and interval.std,
            "rank": _mean(list(placed.get(method, {}).values())),
            "against": against,
            **dict.fromkeys(("pairs", "difference", "difference_ci95", "p", "p_holm", "won")),
        }
        both = sorted(of_seed.keys() & values.get(against, {}).keys()) if method != against else []
        if both:
            first, second = [of_seed[s] for s in both], [values[against][s] for s in both]
            gaps = [a - b if higher_is_better else b - a for a, b in zip(first, second)]
            row |= {"pairs": len(both), "won": sum(gap > 0 for gap in gaps)}
            row["difference"] = sum(a - b for a, b in zip(first, second)) / len(both)
            if len(both) > 1:
                row["difference_ci95"] = paired_interval(first, second).half_width
                row["p"] = paired_p(first, second)
        rows.append(row)
    tested = [row for row in rows if row["p"] is not None]
    for row, p in zip(tested, holm([row["p"] for row in tested])):
        row["p_holm"] = p
    sign = -1 if higher_is_better else 1
    return sorted(rows, key=lambda row: (row["rank"] is None, row["rank"], sign * row["mean"]))


def seed_ranks(
    values: Mapping[str, Mapping[int, float]], *, higher_is_better: bool = True
) -> dict[str, dict[int, float]]:
    """Return the place of every method at every seed that all of them have."""
    placed: dict[str, dict[int, float]] = {method: {} for method in values}
    shared = set.intersection(*(set(v) for v in values.values())) if values else set()
    for seed in sorted(shared):
        places = ranks([v[seed] for v in values.values()], higher_is_better=higher_is_better)
        for method, place in zip(values, places):
            placed[method][seed] = place
    return placed


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
