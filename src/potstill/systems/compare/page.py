"""The page of a comparison: one self-contained file in the look of a run's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from potstill.report.compare import Cell
from potstill.report.text import NBSP, NONE, listed, percent, points, scaled, significant
from potstill.report.writing import render, write_whole
from potstill.systems.compare.charts import NARROW, Curve, DotRow, dot_rows, panel
from potstill.systems.compare.summary import LOWER_IS_BETTER, seed_ranks

Rows = Sequence[Mapping[str, Any]]
_SETUP = ("machine", "gpu", "threads", "torch", "transformers", "potstill", "commit", "date")


@dataclass
class Part:
    """The results of one recipe with one budget."""

    name: str
    heads: list[str]
    rows: list[TableRow]
    caption: str
    dots: Markup | None = None
    dots_narrow: Markup | None = None
    ranks: Markup | None = None
    ranks_narrow: Markup | None = None


@dataclass
class TableRow:
    """A method and its cells."""

    name: str
    note: str = ""
    cells: list[Cell] = field(default_factory=list)


def write_page(target: Path, rows: Rows, summary: Rows, failures: Mapping[str, str], methods: Sequence[str]) -> None:
    """Write ``index.html`` from the rows of ``runs.csv`` and ``summary.csv``."""
    write_whole(target, render("compare.html", page(rows, summary, failures, methods)))


def page(rows: Rows, summary: Rows, failures: Mapping[str, str], methods: Sequence[str]) -> dict[str, Any]:
    """Return what the template is filled with."""
    groups = list(dict.fromkeys((row["recipe"], row["budget"]) for row in summary))
    recipes, budgets = list(dict.fromkeys(r for r, _ in groups)), list(dict.fromkeys(b for _, b in groups))
    seeds = len({row["seed"] for row in rows})
    against = next((row["against"] for row in summary), None)
    lead = (
        f"{len(methods)} methods at equal budget, up to {seeds} seeds each, compared with {against} seed by seed. "
        "Methods that lose are listed like those that win."
        if rows
        else "No run is finished yet."
    )
    return {
        "title": f"{len(methods)} methods on {listed(recipes)}" if recipes else f"{len(methods)} methods",
        "lead": lead,
        "failures": dict(failures),
        "parts": [_part(r, b, rows, summary, methods) for r, b in groups],
        "by_budget": [_over_budget(r, summary, methods) for r in recipes] if len(budgets) > 1 else [],
        "by_size": [_over_size(b, summary, methods) for b in budgets] if len(recipes) > 1 else [],
        "setup": [(k, v) for k in _SETUP if (v := _values(rows, k))],
    }


def _values(rows: Rows, key: str) -> str:
    return ", ".join(dict.fromkeys(str(row[key]) for row in rows if row.get(key) not in (None, "")))


def write_measure(measure: str, value: float | None) -> str:
    """Write a value of a measure: scores as shares, divergence in nats."""
    return significant(value) if measure in LOWER_IS_BETTER else percent(value)


def _part(recipe: str, budget: str, rows: Rows, summary: Rows, methods: Sequence[str]) -> Part:
    mine = [row for row in summary if (row["recipe"], row["budget"]) == (recipe, budget)]
    runs = [row for row in rows if (row["recipe"], row["budget"]) == (recipe, budget)]
    by_measure: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in mine:
        by_measure.setdefault(row["measure"], {})[row["method"]] = row
    others = [m for m in by_measure if m != "score"]
    scores = by_measure.get("score", {})
    order = [*scores, *(m for m in methods if m not in scores)]  # best first, as the summary is sorted
    against = mine[0]["against"]
    best = {
        measure: (min if measure in LOWER_IS_BETTER else max)(row["mean"] for row in found.values())
        for measure, found in by_measure.items()
    }
    table = []
    for method in order:
        if method not in scores:
            table.append(TableRow(method, "no run finished", [Cell(NONE)] * (8 + len(others))))
            continue
        row = scores[method]
        cells = [_score_cell("score", row, best["score"]), *_test_cells(row, method == against)]
        cells += [_score_cell(m, by_measure[m].get(method), best[m]) for m in others]
        steps, seconds = row["steps"], row["seconds"]
        cells += [Cell(scaled(row["parameters"])), Cell(f"{steps:,}"), Cell(significant(seconds))]
        note = f"{row['seeds']} seed{'s' if row['seeds'] > 1 else ''}" + (" · reference" if method == against else "")
        table.append(TableRow(method, note, cells))
    teacher = next((row["teacher_score"] for row in runs if row.get("teacher_score") is not None), None)
    caption = (
        f"Best mean rank first. Means over seeds ± half their 95 % interval. Difference to {against} in percentage "
        "points, seed by seed; p from a paired t-test, corrected for the number of methods (Holm)."
    )
    caption += f" The teacher scores {percent(teacher)}." if teacher is not None else ""
    heads = ["Score", "Difference", "p", "Won", "Mean rank", *map(_head, others), "Parameters", "Steps", "Train, s"]
    dots = _dots(scores, runs)
    placed = seed_ranks({m: {r["seed"]: r["score"] for r in runs if r["method"] == m} for m in scores})
    ranks = [DotRow(m, list(p.values()), sum(p.values()) / len(p)) for m, p in placed.items() if p]
    ranked = {"write": significant_rank, "low": 0.8, "high": len(scores) + 0.2}
    several = len(scores) > 1
    label = f"Scores on {recipe}, {budget}: " + "; ".join(f"{d.name} {percent(d.mean)}" for d in dots)
    rank_label = "Mean ranks: " + "; ".join(f"{d.name} {significant_rank(d.mean)}" for d in ranks)
    return Part(
        name=f"{recipe}, {budget.replace('-', ' ', 1)}",
        heads=heads,
        rows=table,
        caption=caption,
        dots=dot_rows(dots, label, percent) if dots else None,
        dots_narrow=dot_rows(dots, label, percent, width=NARROW) if dots else None,
        ranks=dot_rows(ranks, rank_label, **ranked) if ranks and several else None,
        ranks_narrow=dot_rows(ranks, rank_label, width=NARROW, **ranked) if ranks and several else None,
    )


def _head(measure: str) -> str:
    names = {"kl": "KL to teacher", "agreement": "Agreement"}
    return names.get(measure) or f"Score on {measure.removeprefix('score.')}".replace("_", " ")


def significant_rank(value: float) -> str:
    """Write a mean rank: two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _score_cell(measure: str, row: Mapping[str, Any] | None, best: float) -> Cell:
    if row is None:
        return Cell(NONE)
    half = f"± {write_measure(measure, row['ci95'])}" if row["ci95"] is not None else ""
    return Cell(write_measure(measure, row["mean"]), half, row["mean"] == best)


def _test_cells(row: Mapping[str, Any], is_reference: bool) -> list[Cell]:
    rank = Cell(NONE if row["rank"] is None else significant_rank(row["rank"]))
    if is_reference or row["pairs"] is None:
        return [Cell(NONE), Cell(NONE), Cell(NONE), rank]
    half = row["difference_ci95"]
    sub = f"± {points(half).lstrip('+±')}" if half is not None else ""
    p = Cell(NONE if row["p_holm"] is None else write_p(row["p_holm"]))
    return [Cell(points(row["difference"]), sub), p, Cell(f"{row['won']}{NBSP}of{NBSP}{row['pairs']}"), rank]


def write_p(p: float) -> str:
    """Write a p-value: three decimals, below that as such."""
    return f"<{NBSP}0.001" if p < 0.001 else f"{p:.3f}"


def _dots(scores: Mapping[str, Mapping[str, Any]], runs: Rows) -> list[DotRow]:
    return [
        DotRow(method, [r["score"] for r in runs if r["method"] == method], row["mean"], row["ci95"])
        for method, row in scores.items()
    ]


def _over_budget(recipe: str, summary: Rows, methods: Sequence[str]) -> dict[str, Any]:
    found = [row for row in summary if row["recipe"] == recipe and row["measure"] == "score"]
    return _panels(recipe, found, methods, "steps", "steps")


def _over_size(budget: str, summary: Rows, methods: Sequence[str]) -> dict[str, Any]:
    found = [row for row in summary if row["budget"] == budget and row["measure"] == "score"]
    return _panels(budget.replace("-", " ", 1), found, methods, "parameters", "parameters")


def _panels(name: str, found: Rows, methods: Sequence[str], axis: str, unit: str) -> dict[str, Any]:
    curves = []
    for method in methods:
        of_method = [row for row in found if row["method"] == method and row[axis]]
        at = sorted((float(row[axis]), row["mean"], row["ci95"]) for row in of_method)
        if at:
            curves.append(Curve(method, at))
    panels = []
    for number, curve in enumerate(curves):
        said = "; ".join(f"{x:,.0f} {unit}: {percent(mean)}" for x, mean, _ in curve.points)
        panels.append({"title": curve.name, "chart": panel(curves, number, f"{curve.name}: {said}", _short, unit)})
    return {"name": name, "panels": panels}


def _short(value: float) -> str:
    return percent(value, 0)
