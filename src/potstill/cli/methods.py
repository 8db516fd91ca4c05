"""``potstill methods``."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def methods(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List every distillation system: paper, names in the API, recipe, evidence."""
    from potstill.systems.catalogue import CATALOGUE

    if as_json:
        typer.echo(json.dumps([row.as_dict() for row in CATALOGUE], indent=1, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("system", "kind", "paper", "names", "recipe", "evidence", title="Distillation systems")
    for row in CATALOGUE:
        table.add_row(row.name, row.kind, row.paper, ", ".join(row.api), row.recipe or "-", row.evidence or "-")
    Console().print(table)
