"""``potstill inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class _ModelFirst(TyperGroup):
    """``potstill inspect coca-scenes`` is ``potstill inspect model coca-scenes``."""

    def resolve_command(self, ctx, args):
        if args and args[0] not in self.commands:
            args = ["model", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(help="Look at models and data before distilling.", no_args_is_help=True, cls=_ModelFirst)

ShapesOption = Annotated[
    str | None, typer.Option("--recipe", help="Run it on two samples of this recipe's data, to show output shapes.")
]


@app.command("model")
def model(
    name: Annotated[str, typer.Argument(help="Folder, packaged name or hub name.")],
    recipe: ShapesOption = None,
    depth: Annotated[int, typer.Option(help="How deep to list modules.")] = 2,
) -> None:
    """List module paths, shapes, heads and parameters of a model."""
    from rich.console import Console

    from potstill.models.load import load_model
    from potstill.taps.inspect import describe_model, render

    loaded = load_model(name, where="model")
    Console(markup=False).print(render(describe_model(loaded, _example(loaded, recipe)), max_depth=depth))


@app.command("pair")
def pair(
    student: Annotated[str, typer.Argument(help="The student: folder, packaged name or hub name.")],
    teacher: Annotated[str, typer.Argument(help="The teacher, likewise.")],
    recipe: ShapesOption = None,
) -> None:
    """Propose modules, layer maps and projectors for a student and a teacher."""
    from rich.console import Console

    from potstill.models.load import load_model
    from potstill.taps.inspect import propose, render

    models = load_model(student, where="student"), load_model(teacher, where="teacher")
    Console(markup=False).print(render(propose(*models, *(_example(m, recipe) for m in models))))


def _example(model: Any, recipe: str | None) -> dict[str, Any] | None:
    """Return what the model takes of two samples, or None without a recipe."""
    if recipe is None:
        return None
    from potstill.recipe import load_recipe
    from potstill.run.build import build_source
    from potstill.taps.inputs import model_inputs

    resolved = load_recipe(recipe)
    return model_inputs(model, resolved.inputs)(build_source(resolved).example())


@app.command("data")
def data(
    source: Annotated[str, typer.Argument(help="Data source: scenes.")] = "scenes",
    task: Annotated[str, typer.Option(help="caption, vqa, entailment, nlvr2, ...")] = "vqa",
    split: Annotated[str, typer.Option(help="Split.")] = "train",
    count: Annotated[int, typer.Option("--n", min=1, max=400, help="Number of samples.")] = 24,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("contact-sheet.png"),
) -> None:
    """Write a contact sheet of samples."""
    from potstill.data.scenes import SceneDataset, contact_sheet
    from potstill.errors import InputError, RecipeError

    if source != "scenes":
        raise RecipeError("has no contact sheet", where="data.source", expected="scenes", got=source)
    sheet = contact_sheet(SceneDataset(split=split, tasks=(task,), seed=seed), task, count)
    try:
        sheet.save(out)
    except (OSError, ValueError) as error:  # ValueError: Pillow knows no such ending
        raise InputError(f"cannot be written ({error})", where=str(out), expected="a PNG file") from error
    typer.echo(out)
