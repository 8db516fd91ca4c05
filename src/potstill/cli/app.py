"""The table of commands."""

from __future__ import annotations

import typer

from potstill._version import __version__
from potstill.cli import (
    cache,
    compare,
    config,
    demo,
    distill,
    evaluate,
    fetch,
    generate,
    inspect,
    methods,
    plan,
    report,
)

app = typer.Typer(
    name="potstill",
    help="Distil large multimodal models into small students, module by module.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


app.command("demo")(demo.demo)
app.command("plan")(plan.plan)
app.command("distill")(distill.distill)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.add_typer(cache.app, name="cache")
app.add_typer(inspect.app, name="inspect")
app.command("report")(report.report)
app.add_typer(config.app, name="config")
app.command("methods")(methods.methods)
app.command("fetch")(fetch.fetch)
app.command("generate")(generate.generate)
