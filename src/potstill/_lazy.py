"""Packages that import a name's file when the name is first used, so that importing them imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, names: dict[str, Any], homes: Mapping[str, str], registries: tuple[str, ...] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: Its ``__name__``.
        names: Its ``globals()``, where what was found is kept.
        homes: The file of each name.
        registries: Names that are filled by importing every file: who asks for one gets it full.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        for file in sorted(set(homes.values())) if name in registries else ():
            import_module(f"{package}.{file}")
        names[name] = getattr(import_module(f"{package}.{homes[name]}"), name)
        return names[name]

    return get, lambda: sorted({*names, *homes})
