"""Systems of the literature, and the catalogue of all that Potstill has.

Names are loaded on first use, so importing this package imports neither torch nor scikit-learn.
"""

from typing import TYPE_CHECKING

from potstill._lazy import lazy_names

if TYPE_CHECKING:
    from potstill.systems.auto_distiller import AutoDistiller, Recommendation, task_features
    from potstill.systems.hybrid_distill import HybridDistillPipeline
    from potstill.systems.meal_v2 import MealV2Trainer
    from potstill.systems.minillm import MiniLLMPipeline
    from potstill.systems.novel_class_discovery import NCDPipeline
    from potstill.systems.web_distill import WebDistillPipeline

__all__ = [
    "AutoDistiller",
    "HybridDistillPipeline",
    "MealV2Trainer",
    "MiniLLMPipeline",
    "NCDPipeline",
    "Recommendation",
    "WebDistillPipeline",
    "task_features",
]

_HOMES = {
    "AutoDistiller": "auto_distiller",
    "HybridDistillPipeline": "hybrid_distill",
    "MealV2Trainer": "meal_v2",
    "MiniLLMPipeline": "minillm",
    "NCDPipeline": "novel_class_discovery",
    "Recommendation": "auto_distiller",
    "WebDistillPipeline": "web_distill",
    "task_features": "auto_distiller",
}

__getattr__, __dir__ = lazy_names(__name__, globals(), _HOMES)
