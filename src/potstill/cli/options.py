"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

RecipeArgument = Annotated[str, typer.Argument(help="A YAML file or the name of a packaged recipe.", metavar="RECIPE")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Override a field, such as train.steps=100. Can be repeated."),
]
