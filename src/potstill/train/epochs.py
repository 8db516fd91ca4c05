"""Tells a dataset which epoch begins, so that it can augment its samples anew."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback


class TellEpoch(TrainerCallback):
    """Calls ``set_epoch`` of the training set before its data loader starts workers or draws an index.

    accelerate (1.15) tells the dataset itself, but not with several processes, nor when an epoch is gone on with in its
    middle (``tests/data/test_picture_runs.py`` fails without this).
    """

    def __init__(self, dataset: Any):
        self._dataset = dataset

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        """Count the epoch by the steps that are done: it may be one that is gone on with."""
        steps = -(-len(train_dataloader) // args.gradient_accumulation_steps)
        self._dataset.set_epoch(state.global_step // steps)
