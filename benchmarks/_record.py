"""How benchmarks keep results: CSV rows that say on which machine, when and from which commit they come."""

from __future__ import annotations

import contextlib
import csv
import datetime
import fcntl
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

RESULTS = Path(__file__).parent / "results"
# What runs must share to be compared, in the experiments on the scenes: the columns of ``_scenes.budget_of``. Here, so
# that summing up needs no torch.
SHARED = ("setting", "steps", "batch_size", "learning_rate", "round_steps", "hidden_weight", "student")


def origin() -> dict[str, Any]:
    """Return the columns every row ends with. Call it at the start: the commit may move on while a script runs."""
    torch = sys.modules.get("torch")
    return {
        "machine": f"{cpu()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads() if torch else 1,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "transformers": _version("transformers"),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
    }


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """Return the short commit; "+changes" if no commit holds the code the numbers were made with."""

    def git(*words: str) -> str:
        found = subprocess.run(["git", *words], capture_output=True, text=True, cwd=RESULTS.parents[1])
        return found.stdout.strip()

    # Results are what is being written: a row appended to them changes no code.
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+changes" if changed else "")


def summary_of(runs: Path) -> Path:
    """Return the file for the summary of a file of runs: its name without "_runs"."""
    summary = runs.with_name(runs.name.replace("_runs", ""))
    if summary == runs:
        raise SystemExit(f'{runs}: the runs need a name with "_runs", the summary gets the one without')
    return summary


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace the file. Columns stand in the order in which the fullest row first names them."""
    rows = list(rows)
    fields = list(dict.fromkeys(key for row in sorted(rows, key=len, reverse=True) for key in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows under the columns the file has, whole even if another process is adding too."""
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", newline="", encoding="utf-8") as file, _locked(file):
        file.seek(0)
        fields = next(csv.reader(file), None)
        file.seek(0, os.SEEK_END)
        writer = csv.DictWriter(file, fields or list(rows[0]), lineterminator="\n")
        if fields is None:
            writer.writeheader()
        for row in rows:
            if set(row) != set(writer.fieldnames):
                other = ", ".join(sorted(set(row) ^ set(writer.fieldnames)))
                raise SystemExit(f"{path}: it has other columns than these rows ({other}); choose another file")
            writer.writerow(row)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows as text; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@contextlib.contextmanager
def _locked(file: TextIO) -> Iterator[None]:
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        file.flush()
        fcntl.flock(file, fcntl.LOCK_UN)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
