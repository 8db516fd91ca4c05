"""What happened in a run, event by event, as JSON lines that a resumed run continues without a gap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from potstill.errors import IntegrityError
from potstill.train.checkpoint import write_text


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
        lines = self.path.read_bytes().rstrip(b"\n").split(b"\n") if self.path.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                event = json.loads(line)
                event["event"], event["step"] = str(event["event"]), int(event["step"])
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                if number == len(lines):  # torn by a kill
                    break
                raise IntegrityError(
                    "this line is no event",
                    where=f"{self.path}, line {number}",
                    hint="Remove the line or restore the file, then resume.",
                ) from error
            events.append(event)
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
        line, from a run killed while writing, is cut off; a damaged one before it is an ``IntegrityError``.
        """
        self._kept = []
        if self.path is None or not self.is_writer or not self.path.exists():
            return
        kept = []
        for event in self.events:
            is_other = event.get("stage") != self.stage
            if is_other or event["step"] < step or (event["step"] == step and event["event"] == "step"):
                kept.append(event)
        write_text(self.path, "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in kept))
