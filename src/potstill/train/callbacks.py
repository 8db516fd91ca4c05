"""What the Trainer of transformers leaves out: epochs gone on with in their middle, and the log of the last steps."""

from __future__ import annotations

from collections.abc import Callable

from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy


class BeforeEpoch(TrainerCallback):
    """Calls functions with the number of the epoch before its data loader starts workers or draws an index.

    accelerate (1.15) tells the dataset itself, but not with several processes, nor when an epoch is gone on with in its
    middle (``tests/data/test_picture_runs.py`` fails without this).
    """

    def __init__(self, *begin: Callable[[int], None]):
        self._begin = begin

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        """Count the epoch by the steps that are done."""
        steps = -(-len(train_dataloader) // args.gradient_accumulation_steps)
        for begin in self._begin:
            begin(state.global_step // steps)


class LogLastStep(TrainerCallback):
    """Logs after the last step, whatever the interval: else up to an interval of steps is in no history."""

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for a log if there are no more steps."""
        if state.global_step >= state.max_steps and args.logging_strategy != IntervalStrategy.NO:
            control.should_log = True
