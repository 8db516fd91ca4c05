"""``potstill compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from potstill.cli.options import SetOption


def compare(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(help="YAML files or packaged recipes.", metavar="RECIPE...", show_default=False),
    ] = None,
    methods: Annotated[
        str, typer.Option("--methods", metavar="A,B", help='Losses, "labels", systems of the catalogue, recipes.')
    ] = "kd_kl",
    budget: Annotated[str, typer.Option("--budget", help="steps=400[,800] or minutes=2, for each run.")] = "steps=400",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Number of seeds.")] = 5,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder; new, or of a comparison to go on with.")
    ] = Path("runs/compare"),
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Runs at a time; default: half of the cores.")
    ] = None,
    trials: Annotated[int, typer.Option("--trials", min=0, help="Trials of tuning for each method.")] = 0,
    against: Annotated[
        str | None, typer.Option("--against", help="Method to compare the others with; default: the first.")
    ] = None,
    overrides: SetOption = None,
    recommend: Annotated[
        list[Path] | None,
        typer.Option("--recommend", metavar="RUNS.csv", help="Run nothing: say what earlier runs suggest for RECIPE."),
    ] = None,
) -> None:
    """Compare methods at equal budget over seeds: table, CSV and page; goes on where it stopped."""
    from potstill.cli.show_compare import CompareDisplay, show_advice, show_comparison
    from potstill.errors import InputError

    if recommend:
        from potstill.systems.compare.recommend import advise

        show_advice(advise(recommend, recipes or (), overrides=overrides or ()))
        return
    if not recipes:
        raise InputError("no recipe was given", where="RECIPE", expected="at least one")
    from potstill.systems.compare import compare as carry_out

    words = [word.strip() for word in methods.split(",") if word.strip()]
    with CompareDisplay() as display:
        done = carry_out(
            recipes, words, budget=budget, out=out, seeds=seeds, jobs=jobs, trials=trials,
            overrides=overrides or (), against=against, progress=display,
        )  # fmt: skip
    show_comparison(done.summary)
    typer.echo(f"Page: {done.page}\nRuns: {done.folder / 'runs.csv'}")
    if done.failures:
        typer.echo(f"potstill: {len(done.failures)} runs failed; the same command tries them again", err=True)
        raise typer.Exit(2)
