"""Templates of the package, filled in and written to a file that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined, TemplateNotFound
from markupsafe import Markup

from potstill._version import __version__
from potstill.errors import InputError


def render(template: str, values: Mapping[str, Any]) -> str:
    """Fill in a template of ``report/page``; it also gets the style sheet as ``css`` and our ``version``."""
    # Our own file: the only text that is not escaped.
    own = {"css": Markup(_resource("report.css")), "version": __version__}
    return _environment().get_template(template).render({**own, **values})


def write_whole(target: Path, html: str) -> None:
    """Write a page; one that is there is replaced at once."""
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A lone surrogate in a JSON string has no UTF-8 form; the reader sees a replacement mark.
        draft.unlink(missing_ok=True)
        with open(draft, "xb") as file:  # never through a link that lies there under this name
            file.write(html.encode("utf-8", errors="replace"))
        os.replace(draft, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        hint = "Choose another file with out, or free some space."
        raise InputError("the report cannot be written", where=str(target), got=str(error), hint=hint) from error


class _PackageFiles(BaseLoader):
    """Templates from package data, wherever the package lives."""

    def get_source(self, environment: Environment, template: str):
        try:
            return _resource(template), None, None
        except FileNotFoundError:
            raise TemplateNotFound(template) from None


def _resource(name: str) -> str:
    return (files("potstill.report") / "page" / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    return Environment(
        loader=_PackageFiles(), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
