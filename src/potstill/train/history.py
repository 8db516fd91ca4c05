"""What happened in a run, event by event: in memory, and as JSON lines that a resumed run continues without a gap."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class History:
    """A list of events, appended to a file as they come.

    Args:
        path: File of JSON lines; None = keep only in memory.
        stage: Written into every event, where several stages share the file.
        is_writer: False on all processes but the first.
    """

    def __init__(self, path: Path | str | None = None, *, stage: str | None = None, is_writer: bool = True):
        self.path = Path(path) if path else None
        self.stage, self.is_writer = stage, is_writer
        self.events: list[dict[str, Any]] = []

    def add(self, event: dict[str, Any]) -> None:
        """Append an event."""
        if self.stage is not None:
            event["stage"] = self.stage
        self.events.append(event)
        if self.path is not None and self.is_writer:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(event, ensure_ascii=False) + "\n")

    def rewind(self, step: int) -> None:
        """Drop what this stage wrote after ``step``: those steps are done again.

        A round that ended on ``step`` is measured at the start of the next step, so it is dropped too. A torn last
        line, from a run killed while writing, is cut off.
        """
        self.events = []
        if self.path is None or not self.path.exists():
            return
        for line in self.path.read_bytes().split(b"\n"):  # bytes: a torn line may end within a character
            try:
                event = json.loads(line)
            except ValueError:
                break
            is_other = event.get("stage") != self.stage
            if is_other or event["step"] < step or (event["step"] == step and event["event"] == "step"):
                self.events.append(event)
        if self.is_writer:
            temporary = self.path.with_name(self.path.name + ".tmp")
            lines = (json.dumps(event, ensure_ascii=False) + "\n" for event in self.events)
            temporary.write_text("".join(lines), encoding="utf-8")
            os.replace(temporary, self.path)
