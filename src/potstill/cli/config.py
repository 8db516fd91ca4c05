"""``potstill config``."""

from __future__ import annotations

import json

import typer

from potstill.cli.options import RecipeArgument, SetOption

app = typer.Typer(help="Show recipes: all fields resolved, the packaged ones, the schema.", no_args_is_help=True)


@app.command("show")
def show(recipe: RecipeArgument, overrides: SetOption = None) -> None:
    """Print a recipe with every default written out."""
    from potstill.recipe import dump_recipe, load_recipe

    typer.echo(dump_recipe(load_recipe(recipe, overrides or ())), nl=False)


@app.command("list")
def list_recipes() -> None:
    """List the packaged recipes."""
    from potstill.recipe import packaged_recipes

    for name, path in packaged_recipes().items():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        typer.echo(f"{name:24} {first.lstrip('# ')}")


@app.command("schema")
def schema() -> None:
    """Print the JSON schema of a recipe."""
    from potstill.recipe import Recipe

    typer.echo(json.dumps(Recipe.model_json_schema(), indent=1))
