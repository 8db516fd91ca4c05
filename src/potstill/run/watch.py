"""What looks on while a stage trains: signals that stop it in good order, and steps passed on to a display."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback

from potstill.train import DistillationTrainer

Progress = Callable[[Mapping[str, Any]], None]


class StopOnSignal(TrainerCallback):
    """Turns SIGINT and SIGTERM into a checkpoint and an orderly end of training; a second signal ends it at once.

    Of several processes all stop after the same step, also if a signal reached only one of them. There a second signal
    changes nothing: launchers pass on what the terminal or the queue has sent to every process already, and end by
    themselves what takes too long.
    """

    def __init__(self):
        self.stopped = False
        self.trainer: DistillationTrainer | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame) -> None:
        if self.stopped and (self.trainer is None or self.trainer.args.world_size == 1):
            raise KeyboardInterrupt
        self.stopped = True

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for a checkpoint and the end, once a signal came."""
        if self.trainer is not None:
            self.stopped = self.trainer.on_any_rank(self.stopped)
        if self.stopped:
            control.should_save = control.should_training_stop = True
        return control


class ReportSteps(TrainerCallback):
    """Passes steps on to a display, with the arm being played."""

    def __init__(self, progress: Progress):
        self._progress = progress
        self.trainer: DistillationTrainer | None = None

    def on_step_end(self, args, state, control, **kwargs):
        """Pass on one step."""
        event = {"event": "step", "step": state.global_step, "steps": state.max_steps}
        if self.trainer is not None:
            event["arm"] = self.trainer.arm_name
        self._progress(event)
