"""How a cache looks in a terminal, while it is built and afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table


class BuildDisplay:
    """Turns the events of a build into a line for each field and a progress bar."""

    def __init__(self, console: Console | None = None):
        self._console = console or Console(markup=False)
        self._progress = Progress(
            TextColumn("{task.description:12}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = None

    def __enter__(self) -> BuildDisplay:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._task is not None:
            self._progress.stop()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show one event of a build."""
        if event["event"] == "field":
            size = f"{event['bytes_per_sample']:,.0f} bytes a sample"
            self._console.print(f"{event['name']}: {describe(event)}, {size}")
        elif event["event"] == "rows":
            if self._task is None:
                self._progress.start()
                self._task = self._progress.add_task("cache", total=event["of"])
            self._progress.update(self._task, completed=event["done"])


def describe(field: Mapping[str, Any]) -> str:
    """Return in words how a field is kept."""
    if field["kind"] == "whole":
        return f"all of {'×'.join('n' if n == -1 else str(n) for n in field['shape'])} as {field['codec']}"
    how = f"{field['k']} draws" if field["kind"] == "drawn" else f"{field['k']} most likely"
    tail = "".join(f", tail at T = {t:g}" for t in field["temperatures"])
    return f"{how} of {field['vocab']:,} classes as {field['codec']}{tail}"


def show_info(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Print what ``CacheReader.info`` returned."""
    console = console or Console(markup=False)
    teacher = found["teacher"]
    console.print(f"teacher: {teacher['class']} ({teacher['model']}), {teacher['dtype']}, {teacher['weights'][:12]}…")
    console.print(f"samples: {found['rows']:,} in {found['files']} files, {found['bytes'] / 1e6:,.1f} MB")
    table = Table("field", "kept", "positions", "bytes", "a position")
    for field in found["fields"]:
        which = "all" if field["mask"] is None else field["mask"] + (" of the next" if field["shift"] else "")
        table.add_row(
            field["name"],
            describe(field),
            f"{field['positions']:,} ({which})",
            f"{field['bytes']:,}",
            f"{field['bytes_per_position']:g}",
        )
    console.print(table)
