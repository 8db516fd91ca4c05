"""``potstill demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the two runs; must be new.")] = Path(
        "runs/demo"
    ),
    steps: Annotated[int | None, typer.Option(min=20, help="Steps of each run; default: the recipes'.")] = None,
) -> None:
    """Distil the shipped teacher with OPTIMA and, at the same number of steps, with plain logit KD."""
    from potstill.cli.show import Display, show_metrics
    from potstill.errors import InputError
    from potstill.report import build_report
    from potstill.run import distill

    if out.exists() and any(out.iterdir()):
        raise InputError("the output folder is not empty", where=str(out), hint="Choose another with --out.")
    overrides = [] if steps is None else [f"train.steps={steps}"]
    runs = {}
    for name in ("optima-scenes", "kd-scenes"):
        with Display(name) as display:
            runs[name] = distill(name, out / name, overrides=overrides, progress=display)
    models = {"teacher": runs["optima-scenes"].metrics["models"]["teacher"]}
    models |= {name: run.metrics["models"]["student"] for name, run in runs.items()}
    show_metrics(models)
    typer.echo(f"Report: {build_report([run.folder for run in runs.values()], out / 'report.html')}")
