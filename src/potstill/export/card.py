"""A short model card: what the student is, where it comes from, what it scores."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any


def model_card(facts: Mapping[str, Any]) -> str:
    """Return a model card in Markdown.

    Args:
        facts: Whatever is known. ``name``, ``summary``, ``license`` and ``tags`` have their own places, and ``scores``
            (task -> number, or task -> mapping of numbers) becomes a table; every other entry is a line of its own.
    """
    rest = {k: v for k, v in facts.items() if k not in ("name", "summary", "license", "tags", "scores")}
    name = _line(facts.get("name") or "Distilled student")
    head = ["---", "library_name: transformers"]
    if facts.get("license"):
        head.append(f"license: {json.dumps(_line(facts['license']))}")
    tags = ["potstill", "distillation", *(str(t) for t in facts.get("tags") or ())]
    head += [f"tags: {json.dumps(list(dict.fromkeys(tags)))}", "---", ""]
    body = [f"# {name}", "", _line(facts.get("summary") or "A student model distilled with Potstill."), ""]
    if rest:
        body += [f"- {_line(key).replace('_', ' ').capitalize()}: {_line(value)}" for key, value in rest.items()] + [""]
    scores = facts.get("scores")
    if scores:
        body += ["## Scores", "", "| task | score | value |", "| --- | --- | --- |"]
        for task, entry in scores.items():
            entry = entry if isinstance(entry, Mapping) else {"score": entry}
            for key, value in entry.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    body.append(f"| {_cell(task)} | {_cell(key)} | {value:.4g} |")
        body.append("")
    return "\n".join(head + body)


def _line(value: Any) -> str:
    """Return a value as one line that cannot start new Markdown or HTML."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return re.sub(r"\s+", " ", text).replace("<", "&lt;").strip()


def _cell(value: Any) -> str:
    return _line(value).replace("|", "\\|")
