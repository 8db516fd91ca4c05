"""Which samples to train on, or to ask a teacher about. Names are loaded on first use."""

from importlib import import_module
from typing import Any

_HOMES = {
    "EntropySelector": "selectors",
    "KCenterSelector": "selectors",
    "MarginSelector": "selectors",
    "RADResult": "active_distill",
    "RandomSelector": "selectors",
    "RobustActiveSelector": "robust_active",
    "Selector": "selectors",
    "entropy_gains": "gains",
    "inclusion_probabilities": "active_distill",
    "margin_gains": "gains",
    "rad_distribution": "active_distill",
    "systematic_sample": "active_distill",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
