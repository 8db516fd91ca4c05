"""Names a recipe may use: one registry per kind of thing (policy, loss, student builder, data source, model family)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from potstill.errors import InputError, RecipeError, suggest

T = TypeVar("T")


class Registry(Generic[T]):
    """A table from a stable string name to a class or function.

    Other packages add to it through the entry-point group ``potstill.plugins``: each entry point is a function
    that is called once, before the first unknown name is refused. A recipe never holds an import path.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[Any], Any]:
        """Return a decorator that files its target under ``name``. A name can be taken only once."""

        def file_under(item: Any) -> Any:
            if name in self._items:
                raise InputError(f'{self.kind} "{name}" is registered twice', hint="Choose another name.")
            self._items[name] = item
            return item

        return file_under

    def get(self, name: str, where: str | None = None) -> T:
        """Return what is filed under ``name``; an unknown name is a ``RecipeError`` with the nearest match."""
        if name not in self._items:
            load_plugins()
        if name not in self._items:
            raise RecipeError(f'unknown {self.kind} "{name}"', where=where, hint=suggest(str(name), self._items))
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))


_plugins_loaded = False


def load_plugins() -> None:
    """Call every ``potstill.plugins`` entry point once."""
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True
    for point in entry_points(group="potstill.plugins"):
        point.load()()
