"""Carries out an on-policy sampler: the student writes before a step, and what it drew and keeps is in checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from potstill.data.generation import OnPolicySampler, check_room
from potstill.data.sources import fetch
from potstill.errors import IntegrityError, RecipeError
from potstill.objectives.base import IGNORE_INDEX

if TYPE_CHECKING:
    from potstill.train.trainer import DistillationTrainer


class Rollouts:
    """Batches of which the student has written a share, at the time of the step that trains on them.

    Every rank writes with its own student, from its own draws, and keeps its own buffer.

    Args:
        sampler: Decides who writes, and writes.
        trainer: Its models and ranks.

    Raises:
        RecipeError: The student is sharded, or a teacher is to be mixed in and there is none that can write.
    """

    def __init__(self, sampler: OnPolicySampler, trainer: DistillationTrainer):
        self.sampler, self.trainer = sampler, trainer
        if trainer.args.shard:
            raise RecipeError(
                "a sharded student cannot write: its processes would fall out of step",
                where="rollout",
                hint="Set train.shard: false; train.gradient_checkpointing and precision: bf16 save memory, too.",
            )
        if sampler.needs_teacher and getattr(trainer.teacher, "model", None) is None:
            raise RecipeError(
                "the teacher takes part in the writing, but there is none that can write",
                where="rollout",
                hint="Name a teacher without a cache.",
            )

        # A prompt that leaves no room would end the run at the step that meets it: look at some before the first.
        rows = range(min(len(trainer.train_dataset), 4 * trainer.args.train_batch_size))
        labels = trainer.data_collator(fetch(trainer.train_dataset, rows)).get("labels", torch.zeros(1, 1))
        prompts = (labels == IGNORE_INDEX).long().cumprod(1).sum(1).clamp_min(1)
        check_room(trainer.model.student, int(prompts.max()), sampler.max_new_tokens)

    def rolled_out(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Have the student write; what the teacher says of it is asked just before it is trained on."""
        teacher = self.trainer.teacher if self.sampler.needs_teacher else None
        with self.trainer.accelerator.autocast():
            return self.sampler.batch(batch, self.trainer.model.student, None if teacher is None else teacher.model)

    def save(self, folder: str | Path) -> None:
        """Write this rank's state beside the others'."""
        torch.save(self.sampler.state_dict(), Path(folder) / self._file)

    def load(self, folder: str | Path) -> None:
        """Take up this rank's state."""
        path = Path(folder) / self._file
        if not path.is_file():
            hint = "Resume with as many processes as the run was started with."
            raise IntegrityError("the file is missing", where=str(path), hint=hint)
        self.sampler.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    @property
    def _file(self) -> str:
        return f"rollouts-{self.trainer.args.process_index}.pt"
