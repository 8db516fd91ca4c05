"""What the writers of result tables share: reading a file of results, and a table in Markdown."""

from __future__ import annotations

import csv
from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


def read(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def percent(value: str, error: str = "") -> str:
    return f"{100 * float(value):.1f}" + (f" ± {100 * float(error):.1f}" if error else "")
