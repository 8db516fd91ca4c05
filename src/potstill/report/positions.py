"""How far the student is from the teacher at the first, second, … token of a text."""

from __future__ import annotations

import math
from typing import Any

from potstill.report.charts import Line, describe, line_chart
from potstill.report.compare import Model
from potstill.report.figures import Panel
from potstill.report.svg import thin
from potstill.report.text import is_number


def position_panels(models: list[Model]) -> list[Panel]:
    """Return a panel per task whose fidelity was measured token by token; none without such a task."""
    measured = [model for model in models if model.style and model.metrics.fidelity]
    panels = []
    for task in dict.fromkeys(task for model in measured for task in model.metrics.fidelity):
        lines, spoken, longest = [], [], 0
        for model in measured:
            values = _values(model.metrics.fidelity.get(task) or {})
            if len(values) < 2:
                continue
            lines.append(Line(model.label, model.style, thin([float(i) for i in range(1, len(values) + 1)], values)))
            spoken.append(describe(model.label, values))
            longest = max(longest, len(values))
        if lines:
            label = f"KL to the teacher by token of {task}. {'; '.join(spoken)}."
            panels.append(Panel(task, "nats by token", line_chart(lines, label, last_x=longest)))
    return panels


def _values(scores: dict[str, Any]) -> list[float]:
    found = scores.get("kl_by_position")
    if not isinstance(found, list):
        return []
    return [float(value) if is_number(value) else math.nan for value in found]
