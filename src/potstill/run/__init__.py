"""The one place that joins all parts: recipe → plan → run folder."""

from potstill.run.cache_building import CacheForm, build_cache
from potstill.run.execute import distill
from potstill.run.folder import RunFolder
from potstill.run.generate import generate
from potstill.run.measure import Run, evaluate_model
from potstill.run.prepare import plan, prepare

__all__ = ["CacheForm", "Run", "RunFolder", "build_cache", "distill", "evaluate_model", "generate", "plan", "prepare"]
