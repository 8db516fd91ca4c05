"""A Trainer whose checkpoints are complete or refused, sharded or not, and from which training goes on exactly."""

from __future__ import annotations

import os
import pickle
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from potstill.errors import IntegrityError
from potstill.train.checkpoint import (
    POLICY,
    keep_newest,
    load_weights,
    newest_valid,
    read_json,
    save_weights,
    seal,
    verify,
    write_json,
)
from potstill.train.sharding import is_sharded, reshard


class ResumableTrainer(Trainer):
    """Trains a ``DistillModule``; a subclass says in ``_progress`` and ``_begin`` what else it has to keep."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._saving_to: str | None = None
        self._started = time.perf_counter()
        self._seconds_before = 0.0

    def _progress(self) -> dict[str, Any]:
        """Return what else has to be kept, as plain data; all ranks call it."""
        return {}

    def _begin(self, saved: dict[str, Any] | None, where: str) -> None:
        """Take up what ``_progress`` returned; None = training starts."""

    def train(self, resume_from_checkpoint=None, **kwargs):
        """Train. ``True`` resumes from the newest complete checkpoint.

        Raises:
            IntegrityError: The checkpoint is damaged, or cannot be gone on from by these processes.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self.newest_checkpoint()
        elif resume_from_checkpoint:
            verify(Path(resume_from_checkpoint))
        self._check_ranks(Path(resume_from_checkpoint) if resume_from_checkpoint else None)
        try:
            return super().train(resume_from_checkpoint=str(resume_from_checkpoint or "") or None, **kwargs)
        except pickle.UnpicklingError as error:  # the Trainer (5.23) reads its states with weights_only=True
            raise IntegrityError(
                "a state of the training holds something else than numbers, which could run code",
                where=str(resume_from_checkpoint),
                hint="Do not use this checkpoint.",
            ) from error

    @property
    def rows_per_step(self) -> int:
        """Rows that one optimiser step sees, over all ranks and micro-batches."""
        args = self.args
        return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size

    def _check_ranks(self, checkpoint: Path | None) -> None:
        """Refuse a checkpoint that not all ranks see, or that other ranks could not go on from."""
        step = 0 if checkpoint is None else _step_of(checkpoint)
        seen = self._sum_over_ranks(torch.tensor([step, step**2], dtype=torch.float64, device=self.args.device))
        if seen[0] ** 2 != self.args.world_size * seen[1]:  # equal numbers and no others
            raise IntegrityError(
                "the processes see different checkpoints",
                where=str(checkpoint or self.args.output_dir),
                hint="The run folder has to lie on a file system that all nodes share.",
            )
        if checkpoint is None:
            return
        saved = self._saved_in(checkpoint)["ranks"]
        before, now = saved["world_size"], self.args.world_size
        if before != now and saved["rows_per_step"] != self.rows_per_step:
            raise IntegrityError(
                "a step would see another number of rows than before, and the rest would be another run",
                where=str(checkpoint),
                expected=f"{before} processes, {saved['rows_per_step']} rows per step",
                got=f"{now} processes, {self.rows_per_step} rows per step",
                hint=f"Resume with {before} processes (train.batch_size is per process), or start a new run.",
            )
        if saved["sharded"] != is_sharded(self.model):
            raise IntegrityError(
                "was written with the other setting of train.shard", where=str(checkpoint), hint="Resume with it."
            )

    def _saved_in(self, checkpoint: Path) -> dict[str, Any]:
        saved = read_json(checkpoint / POLICY)
        if not isinstance(saved, dict) or not {"seconds", "ranks", *self._progress()} <= set(saved):
            raise IntegrityError("does not hold the state of a run", where=str(checkpoint / POLICY))
        return saved

    def newest_checkpoint(self) -> Path:
        """Return the newest complete checkpoint of this run; none is an error that says why."""
        found, refused = newest_valid(Path(self.args.output_dir))
        if found is None:
            reasons = "; ".join(str(r) for r in refused)
            raise IntegrityError(
                "there is no complete checkpoint to resume from",
                where=str(self.args.output_dir),
                got=reasons or "an empty folder",
                hint="Start again without --resume, in a new folder.",
            )
        return found

    def _init_training_state(
        self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
    ):
        """Restore what the Trainer does not know of."""
        started = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        saved = None
        if resume_from_checkpoint is not None:
            saved = self._saved_in(Path(resume_from_checkpoint))
            self._seconds_before = saved["seconds"]
        self._begin(saved, str(resume_from_checkpoint))
        self._started = time.perf_counter()
        # From a checkpoint of the last step the Trainer (5.23) would do one more before it looks at max_steps.
        return (num_train_epochs, 0) if self.state.global_step >= max_steps else started

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all resumes."""
        return self._seconds_before + time.perf_counter() - self._started

    def _get_output_dir(self, trial=None) -> str:
        """Let a checkpoint grow in a folder beside the finished ones."""
        return self._saving_to or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial=None) -> None:
        """Write everything into a folder of another name, seal it, rename it: a killed save never looks valid."""
        folder = Path(super()._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        growing = folder / ".growing"
        if self.args.should_save:
            shutil.rmtree(growing, ignore_errors=True)
            growing.mkdir(parents=True)
        self._wait()
        self._saving_to = str(growing)
        try:
            super()._save_checkpoint(model, trial)
            state = {
                **self._progress(),
                "seconds": self.seconds,
                "ranks": {
                    "world_size": self.args.world_size,
                    "rows_per_step": self.rows_per_step,
                    "sharded": is_sharded(self.model),
                },
            }
            self._wait()
            if self.args.should_save:
                write_json(growing / name / POLICY, state)
                seal(growing / name)
                shutil.rmtree(folder / name, ignore_errors=True)
                os.rename(growing / name, folder / name)
        finally:
            self._saving_to = None
            if self.args.should_save:
                shutil.rmtree(growing, ignore_errors=True)  # on a full disk, what was half-written is in the way
        if self.args.should_save:
            keep_newest(folder, self.args.keep_checkpoints, written=folder / name)
        self._wait()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save on every rank: a sharded model is gathered by all of them, and written by the first."""
        self._save(output_dir)

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """Keep student and parts apart, each with shared tensors stored once."""
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
        reshard(self.model)
        save_weights(folder, self.model.student, self.model.parts, is_writer=self.args.should_save)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        """Load both strictly; the Trainer's own loader would accept missing tensors with a warning."""
        reshard(self.model)
        load_weights(Path(resume_from_checkpoint), self.model.student, self.model.parts)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Gather a sharded optimiser's state; the Trainer would write the first rank's share alone."""
        if not is_sharded(self.model):
            return super()._save_optimizer_and_scheduler(output_dir)
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        state = get_optimizer_state_dict(
            self.model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Give every rank its share of the whole state."""
        if checkpoint is None or not is_sharded(self.model):
            return super()._load_optimizer_and_scheduler(checkpoint)
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        if state["state"]:  # plain SGD keeps none, and torch (2.13) cannot load that
            set_optimizer_state_dict(self.model, optimizer, state, options=StateDictOptions(full_state_dict=True))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))
        for group, rate in zip(optimizer.param_groups, self.lr_scheduler.get_last_lr()):
            group["lr"] = rate

    def _load_best_model(self) -> None:
        """Load the best checkpoint the same way."""
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _wait(self) -> None:
        if self.args.world_size > 1:
            dist.barrier()

    def _sum_over_ranks(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.args.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def on_any_rank(self, flag: bool) -> bool:
        """Return on every rank whether the flag is up on one of them; all ranks call it."""
        if self.args.world_size == 1:
            return flag
        return bool(self._sum_over_ranks(torch.tensor(float(flag), device=self.args.device)).item())


def _step_of(checkpoint: Path) -> int:
    return int(read_json(checkpoint / TRAINER_STATE_NAME)["global_step"])
