"""``potstill plan``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from potstill.cli.options import RecipeArgument, SetOption


def plan(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Say what a recipe will do: layer maps, shapes, parts, objectives. Nothing is trained or written."""
    from potstill.cli.show import show_plan
    from potstill.run import plan as make

    plans = make(recipe, overrides or ())
    if as_json:
        typer.echo(json.dumps(plans, indent=1, ensure_ascii=False))
    else:
        for one in plans:
            show_plan(one)
