"""What happened in a run, event by event, as JSON lines that a resumed run continues without a gap."""

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
        self._kept: list[dict[str, Any]] = []

    @property
    def events(self) -> list[dict[str, Any]]:
        """All events so far, read from the file if there is one: in memory those of a long run would pile up."""
        if self.path is None:
            return list(self._kept)
        events = []
        # Bytes: a line may be torn within a character, and str.splitlines splits at more than line ends.
        for line in self.path.read_bytes().split(b"\n") if self.path.exists() else ():
            try:
                events.append(json.loads(line))
            except ValueError:
                break
        return events

    def add(self, event: dict[str, Any]) -> None:
        """Append an event."""
        if self.stage is not None:
            event["stage"] = self.stage
        if self.path is None:
            self._kept.append(event)
        elif self.is_writer:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(event, ensure_ascii=False) + "\n")

    def rewind(self, step: int) -> None:
        """Drop what this stage wrote after ``step``: those steps are done again.

        A round that ended on ``step`` is measured at the start of the next step, so it is dropped too. A torn last
        line, from a run killed while writing, is cut off.
        """
        self._kept = []
        if self.path is None or not self.is_writer or not self.path.exists():
            return
        kept = []
        for event in self.events:
            is_other = event.get("stage") != self.stage
            if is_other or event["step"] < step or (event["step"] == step and event["event"] == "step"):
                kept.append(event)
        temporary = self.path.with_name(self.path.name + ".tmp")
        lines = (json.dumps(event, ensure_ascii=False) + "\n" for event in kept)
        temporary.write_text("".join(lines), encoding="utf-8")
        os.replace(temporary, self.path)
