"""The one place that joins all parts: recipe → plan → run folder."""

from potstill.run.execute import Run, distill, evaluate, plan, prepare
from potstill.run.folder import RunFolder

__all__ = ["Run", "RunFolder", "distill", "evaluate", "plan", "prepare"]
