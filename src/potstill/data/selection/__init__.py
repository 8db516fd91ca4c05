"""Which samples to learn from next: policies over the training set, renewed before every epoch, and their mathematics.

Names are loaded on first use, so importing this package does not import torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "ActiveDistillSelection": "active_policy",
    "Chosen": "base",
    "EntropySelector": "selectors",
    "KCenterSelector": "selectors",
    "MarginSelector": "selectors",
    "Pool": "base",
    "RADResult": "active_distill",
    "RandomSelector": "selectors",
    "RobustActiveSelector": "robust_active",
    "SELECTIONS": "base",
    "Selection": "web_instances",
    "SelectionPolicy": "base",
    "Selector": "selectors",
    "WebInstancePolicy": "web_policy",
    "entropy_gains": "gains",
    "inclusion_probabilities": "active_distill",
    "margin_gains": "gains",
    "rad_distribution": "active_distill",
    "select_web_instances": "web_instances",
    "systematic_sample": "active_distill",
}
_POLICIES = ("active_policy", "web_policy")  # a policy is in the registry once its file is imported
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for file in _POLICIES if name == "SELECTIONS" else ():
        import_module(f"{__name__}.{file}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
