"""``potstill generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from potstill.cli.options import RecipeArgument, SetOption


def generate(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="File for the texts; one begun is gone on with.")],
    samples: Annotated[int | None, typer.Option(min=1, help="Only so many prompts.")] = None,
    beams: Annotated[int, typer.Option(min=1, help="Width of the beam search; 1 = the most likely token.")] = 5,
    temperature: Annotated[float | None, typer.Option(help="Draw at this temperature instead of searching.")] = None,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from the k most likely tokens only; 0 = all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the most likely tokens with this share together.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens per text.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at a time.")] = 8,
    overrides: SetOption = None,
) -> None:
    """Let the teacher write a text for every training prompt (sequence-level distillation)."""
    from potstill.run import generate as carry_out

    with typer.progressbar(length=1000, label="generate") as bar:
        path = carry_out(
            recipe,
            out,
            overrides=overrides or (),
            samples=samples,
            batch_size=batch_size,
            progress=lambda done, total: bar.update(1000 * done // total - bar.pos),
            beams=beams,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
        )
    typer.echo(f"Texts: {path}")
