"""How a comparison looks in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from potstill.report.text import NONE, percent, points, significant


class CompareDisplay:
    """Turns the events of a comparison into a bar and lines."""

    def __init__(self, console: Console | None = None):
        self._console = console or Console(markup=False)
        self._progress = Progress(
            TextColumn("runs"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = None

    def __enter__(self) -> CompareDisplay:
        return self

    def __exit__(self, *exc) -> None:
        if self._task is not None:
            self._progress.stop()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show one event."""
        kind = event["event"]
        if kind == "plan":
            self._progress.start()
            done = event["jobs"] - event["left"]
            self._task = self._progress.add_task("runs", total=event["jobs"], completed=done)
        elif kind == "timing":
            self._console.print(f"measuring a step: {event['job']}")
        elif kind == "failed":
            self._console.print(f"failed: {event['job']}: {event['why']}", soft_wrap=True)
        elif kind == "done" and self._task is None:
            self._console.print(f"done: {event['job']}")
        if kind in ("done", "failed") and self._task is not None:
            self._progress.advance(self._task)


def show_comparison(summary: Sequence[Mapping[str, Any]], console: Console | None = None) -> None:
    """Print a table for each recipe and budget, the best mean rank first."""
    console = console or Console(markup=False)
    for recipe, budget in dict.fromkeys((row["recipe"], row["budget"]) for row in summary):
        rows = [r for r in summary if (r["recipe"], r["budget"], r["measure"]) == (recipe, budget, "score")]
        table = Table(title=f"{recipe}, {budget}")
        against = rows[0]["against"] if rows else ""
        for name in ("method", "score", f"minus {against}", "p (Holm)", "won", "rank", "parameters", "seconds"):
            table.add_column(name, justify="left" if name == "method" else "right", overflow="fold")
        for row in rows:
            table.add_row(
                row["method"],
                percent(row["mean"]) + (f" ± {100 * row['ci95']:.1f}" if row["ci95"] is not None else ""),
                NONE if row["difference"] is None else points(row["difference"]) + _half(row["difference_ci95"]),
                NONE if row["p_holm"] is None else f"{row['p_holm']:.3f}",
                NONE if row["pairs"] is None else f"{row['won']}/{row['pairs']}",
                NONE if row["rank"] is None else f"{row['rank']:.2f}",
                significant(row["parameters"]),
                significant(row["seconds"]),
            )
        console.print(table)


def _half(value: float | None) -> str:
    return "" if value is None else f" ± {100 * value:.1f}"


def show_advice(advice: Mapping[str, Any], console: Console | None = None) -> None:
    """Print what earlier runs suggest, and how often such a suggestion was right."""
    console = console or Console(markup=False)
    for recipe, found in advice["recipes"].items():
        table = Table(title=f"Suggested for {recipe}")
        for name in ("method", "expected share of the teacher's score"):
            table.add_column(name)
        for one in found:
            table.add_row(one["method"], percent(one["ratio"]))
        console.print(table)
    held_out = advice["left_out"]
    if held_out is None:
        console.print("The runs are of one task: how good the suggestions are cannot be told.")
        return
    console.print(
        f"Leaving one of {len(held_out['tasks'])} tasks out: the best method was suggested first in "
        f"{percent(held_out['hit'], 0)} of them (best on average elsewhere: {percent(held_out['average_hit'], 0)}, "
        f"blind: {percent(held_out['blind_hit'], 0)}); lost against the best: {points(held_out['regret'])} points of "
        f"the teacher's score (best on average: {points(held_out['average_regret'])})."
    )
