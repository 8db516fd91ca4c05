"""``potstill cache build | verify | info``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.cli.options import RecipeArgument, SetOption

app = typer.Typer(help="Keep on disk what a teacher shows: run it once, train from it often.", no_args_is_help=True)

FolderArgument = Annotated[Path, typer.Argument(help="Folder of the cache.", metavar="DIR")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("build")
def build(
    recipe: RecipeArgument,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Its folder; default: teacher.cache.")] = None,
    fields: Annotated[
        str | None, typer.Option(metavar="A,B", help="Outputs and taps to keep; default: what the objectives read.")
    ] = None,
    k: Annotated[int, typer.Option(min=0, help="Most likely classes kept of each position; 0 = all.")] = 64,
    draws: Annotated[
        int | None, typer.Option(min=1, max=255, help="Draw so many classes instead, for cache_mode: sampled.")
    ] = None,
    log_probs: Annotated[str, typer.Option(help="Log-probabilities as fp16 or u8.")] = "fp16",
    states: Annotated[str, typer.Option(help="Hidden states and the like as bf16, fp16, fp32 or int8.")] = "bf16",
    temperatures: Annotated[
        str | None, typer.Option(metavar="T,T", help="Temperatures for the tail, beside the objectives' own.")
    ] = None,
    logsumexp: Annotated[bool, typer.Option("--logsumexp", help="Keep the log-sum-exp of the logits too.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per forward pass.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    teacher: Annotated[str, typer.Option(help="Which of several teachers.")] = "teacher",
    stage: Annotated[str | None, typer.Option(help="Which stage of several.")] = None,
    overrides: SetOption = None,
) -> None:
    """Run the teacher of a recipe once over its training samples. Stopped, it goes on when it is started again."""
    from potstill.cli.show_cache import BuildDisplay
    from potstill.errors import InputError
    from potstill.run.cache_building import CacheForm, build_cache

    try:
        further = tuple(float(t) for t in (temperatures or "").split(",") if t.strip())
    except ValueError as error:
        raise InputError("no list of numbers", where="--temperatures", got=temperatures) from error
    form = CacheForm(k, draws, log_probs, states, further, logsumexp, batch_size, seed)
    names = None if fields is None else [name.strip() for name in fields.split(",") if name.strip()]
    with BuildDisplay() as display:
        folder = build_cache(
            recipe,
            out,
            overrides=overrides or (),
            fields=names,
            form=form,
            teacher=teacher,
            stage=stage,
            progress=display,
        )
    typer.echo(f"Cache: {folder}")


@app.command("verify")
def verify(folder: FolderArgument) -> None:
    """Read every bit of a cache and name the files that are damaged."""
    from potstill.errors import IntegrityError
    from potstill.teachers.cache import CacheReader

    reader = CacheReader(folder, where=str(folder))
    found = reader.verify()
    for error in found:
        typer.echo(str(error), err=True)
    if found:
        raise IntegrityError(f"{len(found)} of {len(reader.files)} files are damaged", where=str(folder))
    typer.echo(f"{folder}: {len(reader.files)} files, {reader.rows:,} samples, every bit as it was written")


@app.command("info")
def info(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Say what a cache holds, of which teacher and data, and what it takes."""
    from potstill.cli.show_cache import show_info
    from potstill.teachers.cache import CacheReader

    found: dict[str, Any] = CacheReader(folder, where=str(folder)).info()
    if as_json:
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        show_info(found)
