"""Systems of the literature, and the catalogue of all that Potstill has.

Names are loaded on first use, so importing this package imports neither torch nor scikit-learn.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potstill.systems.auto_distiller import AutoDistiller, Recommendation, task_features

__all__ = ["AutoDistiller", "Recommendation", "task_features"]

_HOMES = {
    "AutoDistiller": "auto_distiller",
    "Recommendation": "auto_distiller",
    "task_features": "auto_distiller",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
