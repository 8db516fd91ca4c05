"""``potstill distill``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from potstill.cli.options import RecipeArgument, SetOption


def distill(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Run folder; new, empty, or to be resumed.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest complete checkpoint.")] = False,
    overrides: SetOption = None,
) -> None:
    """Distil: plan, train, export, measure, report."""
    from potstill.cli.show import Display, show_metrics
    from potstill.ranks import process_rank
    from potstill.run import distill as carry_out

    is_first = process_rank() == 0  # of several processes one shows what happens
    with Display() as display:
        run = carry_out(recipe, out, overrides=overrides or (), resume=resume, progress=display if is_first else None)
    if run.metrics:
        show_metrics({"teacher": run.metrics["models"].get("teacher"), "student": run.metrics["models"]["student"]})
        typer.echo(f"Student: {run.folder / 'student'}\nReport:  {run.report}")
