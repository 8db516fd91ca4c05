"""``potstill report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(help="One or several run folders.", metavar="RUN...")],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="HTML file; default: in the run.")] = None,
) -> None:
    """Write the HTML report of a run again, or one that compares several runs."""
    from potstill.report import build_report

    typer.echo(build_report(runs if len(runs) > 1 else runs[0], out))
