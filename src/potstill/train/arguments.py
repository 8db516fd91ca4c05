"""Settings of a distillation run, on top of transformers' ``TrainingArguments``."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from transformers import TrainingArguments

from potstill.errors import InputError, RecipeError
from potstill.train.probe import YARDSTICKS


def _refuse_other_engines(args: TrainingArguments) -> None:
    """Refuse what would be ignored (accelerate drops FSDP on CPU without a word) or is not looked after here."""
    hint = "Launch without it and set train.shard: true (in Python: DistillationArguments(shard=True))."
    if args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true"):
        raise InputError("FSDP cannot be asked for through accelerate or transformers", where="launch", hint=hint)
    if args.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ("1", "true"):
        raise InputError("DeepSpeed is not supported", where="launch", hint=hint)


@dataclass
class DistillationArguments(TrainingArguments):
    """``TrainingArguments`` plus what distillation needs; some defaults differ, each for a reason.

    ``logging_nan_inf_filter`` is off (it hides NaN), ``remove_unused_columns`` is off (batches hold what objectives
    read), ``disable_tqdm`` and ``report_to`` are quiet (the run folder keeps the history).
    """

    round_steps: int = field(default=100, metadata={"help": "Optimiser steps per round of the policy (P)."})
    probe_batches: int = field(default=4, metadata={"help": "Batches in the policy's probe set."})
    reward: str = field(default="reference", metadata={"help": "Yardstick: reference, per_term or prediction."})
    reward_mode: str = field(default="relative", metadata={"help": "Relative or absolute loss decrement."})
    reward_clip: float | None = field(default=1.0, metadata={"help": "Rewards are clipped to ± this; None = not."})
    equal_hidden_weight: bool = field(
        default=False,
        metadata={"help": "Scale the modules in an arm so that every arm carries the same total hidden weight."},
    )
    part_learning_rate: float | None = field(default=None, metadata={"help": "Learning rate of parts; None = same."})
    survey_samples: int = field(
        default=4096, metadata={"help": "Samples of a generated training set that a survey looks at."}
    )
    shard: bool = field(
        default=False, metadata={"help": "Split student, parts and optimiser state over the processes (FSDP2)."}
    )
    keep_checkpoints: int = field(default=2, metadata={"help": "Newest checkpoints to keep; 0 = all."})
    on_nonfinite: str = field(default="stop", metadata={"help": "A NaN or Inf ends the run (stop) or the step (skip)."})
    logging_nan_inf_filter: bool = False
    remove_unused_columns: bool = False
    disable_tqdm: bool | None = True
    report_to: str | list[str] | None = "none"
    ddp_find_unused_parameters: bool | None = False

    def __post_init__(self):
        _refuse_other_engines(self)
        super().__post_init__()
        if self.shard and self.fp16:
            # Every process would scale by the overflows of its own share.
            raise RecipeError("does not go with fp16", where="train.shard", hint="Set train.precision: bf16.")
        if self.shard and self.torch_compile:
            raise RecipeError("does not go with torch_compile", where="train.shard", hint="Compile the student alone.")
        if self.round_steps < 1:
            raise RecipeError("must be at least 1", where="policy.round_steps", got=self.round_steps)
        if self.probe_batches < 1:
            raise RecipeError("must be at least 1", where="policy.probe_batches", got=self.probe_batches)
        if self.reward not in YARDSTICKS:
            raise RecipeError(
                "unknown yardstick", where="policy.reward", expected=", ".join(YARDSTICKS), got=self.reward
            )
        if self.on_nonfinite not in ("stop", "skip"):
            raise RecipeError(
                "unknown way out", where="train.on_nonfinite", expected="stop or skip", got=self.on_nonfinite
            )
        # The Trainer rotates before our manifest is written; the trainer keeps its own count instead.
        self.save_total_limit = None
