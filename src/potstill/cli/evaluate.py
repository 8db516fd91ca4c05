"""``potstill evaluate``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from potstill.cli.options import SetOption


def evaluate(
    model: Annotated[str, typer.Argument(help="Folder of a saved model, or a packaged name.")],
    recipe: Annotated[str, typer.Option("--recipe", help="Recipe whose data is measured on.")] = "optima-scenes",
    teacher: Annotated[str | None, typer.Option(help="Teacher to measure fidelity to.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data source.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Number of samples.")] = None,
    overrides: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a saved model: task scores, cost and, with a teacher, fidelity."""
    from potstill.cli.show import show_metrics
    from potstill.run import evaluate_model

    entry = evaluate_model(model, recipe, teacher=teacher, split=split, samples=samples, overrides=overrides or ())
    if as_json:
        typer.echo(json.dumps(entry, indent=1, ensure_ascii=False))
    else:
        show_metrics({model: entry})
