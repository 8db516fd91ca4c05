"""Run by torchrun: the second of two ranks fails in the middle of a training."""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "train"))
from toy_models import trainer
from transformers import TrainerCallback


class Fail(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2 and os.environ["RANK"] == "1":
            raise RuntimeError("a fault on one rank")


made = trainer(sys.argv[1], steps=100_000, logging_steps=100_000)
made.add_callback(Fail())
made.train()
