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
    for row in CATALOGUE:
        facts = [f"needs {', '.join(row.needs)}"]
        facts += [f"recipe {row.recipe}"] if row.recipe else []
        facts += [f"evidence {row.evidence}"] if row.evidence else []
        typer.echo(f"{row.name} ({row.kind})\n  {row.paper}\n  {', '.join(row.api)}\n  {'; '.join(facts)}\n")
