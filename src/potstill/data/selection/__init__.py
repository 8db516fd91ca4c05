"""Which samples to learn from next: policies over the training set, renewed before every epoch, and their mathematics.

Names are loaded on first use, so importing this package does not import torch.
"""

from potstill._lazy import lazy_names

_HOMES = {
    "ActiveDistillSelection": "active_policy",
    "Chosen": "base",
    "DDKSelection": "domain_mixture",
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
__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy_names(__name__, globals(), _HOMES, ("SELECTIONS",))
