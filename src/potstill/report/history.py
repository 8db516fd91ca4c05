"""Reading ``history.jsonl``: the steps and the policy's rounds of one run, as far as they were written."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.errors import IntegrityError

NAN = math.nan
LARGEST = 1e100


@dataclass
class Step:
    """One logged training step. ``terms`` maps a term to (value before weighting, weight)."""

    step: int
    loss: float
    terms: dict[str, tuple[float, float]]


@dataclass
class Round:
    """One round of the policy: the steps after the round before it, up to and including ``step``."""

    step: int
    arm: str
    reward: float
    reference: float
    posterior: dict[str, tuple[float, float]]  # arm → (mean, std)


@dataclass
class History:
    """All steps and rounds in order, and what was odd about the file."""

    steps: list[Step] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    is_torn: bool = False
    resumed_at: list[int] = field(default_factory=list)
    skipped: int = 0

    @property
    def last_step(self) -> int:
        """The last step seen, 0 if none."""
        return max(self.steps[-1].step if self.steps else 0, self.rounds[-1].step if self.rounds else 0)

    @property
    def term_names(self) -> list[str]:
        """Names of all loss terms, in order of first appearance."""
        return list(dict.fromkeys(name for step in self.steps for name in step.terms))


def read_history(path: Path) -> History:
    """Read a history file up to its last whole line.

    A run that was killed while writing leaves half a line at the end: it is dropped and ``is_torn`` is set. A run that
    was resumed repeats the steps after its checkpoint: the later writing replaces the earlier one, step by step.

    Raises:
        IntegrityError: if a line other than the last is damaged, or a line holds something else than an event.
    """
    history = History()
    lines = path.read_bytes().split(b"\n")
    filled = [number for number, line in enumerate(lines) if line.strip()]
    for number in filled:
        try:
            event = json.loads(lines[number].decode("utf-8"))
        except (ValueError, RecursionError):
            if number == filled[-1]:
                history.is_torn = True
                break
            raise _damaged(path, number, "this line is not JSON") from None
        try:
            _add(history, event)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise _damaged(path, number, f"this line is not a step or a round ({error!r})") from None
    return history


def _add(history: History, event: dict[str, Any]) -> None:
    kind = event["event"]
    if kind == "step":
        terms = {name: (_number(term["value"]), _number(term.get("weight"))) for name, term in event["terms"].items()}
        step = Step(_whole(event["step"]), _number(event.get("loss")), terms)
        _drop_from(history, step.step, history.steps)
        history.steps.append(step)
    elif kind == "round":
        posterior = {arm: (_number(p["mean"]), _number(p["std"])) for arm, p in (event.get("posterior") or {}).items()}
        reward, reference = _number(event.get("reward")), _number(event.get("reference"))
        round_ = Round(_whole(event["step"]), str(event["arm"]), reward, reference, posterior)
        _drop_from(history, round_.step, history.rounds)
        history.rounds.append(round_)
    elif kind == "skip":
        history.skipped += 1


def _drop_from(history: History, step: int, events: list) -> None:
    """Forget what came at or after ``step`` before: the run went back to a checkpoint and did it again."""
    if events and events[-1].step >= step:
        if not history.resumed_at or history.resumed_at[-1] != step:
            history.resumed_at.append(step)
        while events and events[-1].step >= step:
            events.pop()


def _number(value: Any) -> float:
    """Return a float; null, NaN and ±Infinity stay NaN or inf, anything else is a ``TypeError``.

    What is finite but beyond any picture becomes inf, so that no later sum or difference overflows.
    """
    if value is None:
        return NAN
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"expected a number, got {value!r:.60}")
    if value > LARGEST or value < -LARGEST:
        return math.inf if value > 0 else -math.inf
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected a whole number, got {value!r:.60}")
    return value


def _damaged(path: Path, number: int, message: str) -> IntegrityError:
    hint = f"Remove line {number + 1} or restore the file, then build the report again."
    return IntegrityError(message, where=f"{path}, line {number + 1}", expected="one JSON event a line", hint=hint)
