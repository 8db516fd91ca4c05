"""Tells that an epoch begins, also if it is one that is gone on with in its middle."""

from __future__ import annotations

from collections.abc import Callable

from transformers import TrainerCallback


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
