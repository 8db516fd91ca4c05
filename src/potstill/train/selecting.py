"""Carries out a selection policy: asks the models about the training set before every epoch, and orders its samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.utils.data import Sampler

from potstill.data.selection import Chosen, Pool, SelectionPolicy
from potstill.data.selection.base import Read
from potstill.data.sources import fetch
from potstill.errors import InputError, IntegrityError, RecipeError
from potstill.objectives.base import outputs_and_taps, read_output
from potstill.taps import Taps, observe

if TYPE_CHECKING:
    from potstill.train.trainer import DistillationTrainer

SAMPLE = "sample_id"


class Selector:
    """The samples of the epoch under way, and what their batches hold of the choice.

    Every rank asks its own models about the whole training set and takes the first rank's choice, which may differ in
    the last bits. The choice is in every checkpoint: an epoch that is resumed in its middle goes on with it.

    Args:
        policy: Chooses.
        trainer: Its models, data and ranks.
    """

    def __init__(self, policy: SelectionPolicy, trainer: DistillationTrainer):
        self.policy, self.trainer = policy, trainer
        self.size = len(trainer.plain_dataset)
        if policy.heldout is not None and trainer.heldout_dataset is None:
            raise InputError("the selection measures on held-out samples, and there are none", where="selection")
        if policy.heldout is not None and getattr(trainer.teacher, "model", None) is None:
            raise RecipeError(
                "the selection asks the teacher about held-out samples, but there is none that can be asked",
                where="teacher",
                hint="Name a teacher without a cache.",
            )
        policy.rows_per_step = trainer.rows_per_step
        self.length = policy.length(self.size)
        if not trainer.args.train_batch_size <= self.length:
            raise RecipeError(
                "an epoch of selected samples is smaller than one batch",
                where="selection",
                expected=f"at least {trainer.args.train_batch_size}",
                got=self.length,
            )
        self.epoch = self._told = -1
        self.chosen: Chosen | None = None
        self.sampler = _SelectedSampler(self)

    def begin(self, epoch: int) -> None:
        """Choose the samples of an epoch, unless that is done."""
        if epoch == self.epoch:
            return
        trainer = self.trainer
        pool = self._pool(trainer.plain_dataset)
        if self.policy.heldout is not None:
            pool = replace(pool, heldout=self._pool(trainer.heldout_dataset))
        chosen = self.policy.choose(pool, epoch)
        if trainer.args.world_size > 1:
            row = [chosen, self.policy.state_dict()]
            dist.broadcast_object_list(row, 0)
            chosen = row[0]
            self.policy.load_state_dict(row[1])
        self._check(chosen)
        self.epoch = epoch
        self._take(chosen)

    def _pool(self, dataset: Any) -> Pool:
        asked: dict[str, torch.Tensor] = {}

        def once(name: str, ask: Any) -> torch.Tensor:
            if name not in asked:
                asked[name] = ask()
            return asked[name]

        def outputs(side: str, indices: torch.Tensor | None) -> torch.Tensor:
            return self._measured(dataset, side, lambda output, batch: output.float(), indices, 4)

        return Pool(
            len(dataset),
            student=lambda: once("student", lambda: outputs("student", None)),
            teacher=lambda indices=None: (
                once("teacher", lambda: outputs("teacher", None)) if indices is None else outputs("teacher", indices)
            ),
            batch=lambda key: once(f"batch {key}", lambda: self._entries(dataset, key)),
            measure=lambda side, read, indices=None: self._measured(dataset, side, read, indices),
        )

    def begin_and_tell(self, epoch: int) -> None:
        """Choose, and write the choice of a new epoch into the history, once."""
        self.begin(epoch)
        if self._told != self.epoch:
            self._told = self.epoch
            event = {"event": "selection", "step": self.trainer.state.global_step, "epoch": self.epoch}
            self.trainer.history.add({**event, "chosen": len(self.chosen.indices), **self.chosen.facts})

    def order(self, epoch: int) -> list[int]:
        """Return the sample numbers of the epoch: as the choice orders them, or every pass in an order of its own."""
        if self.chosen.order is not None:
            return self.chosen.order.tolist()
        generator = torch.Generator().manual_seed((self.trainer.args.seed * 1_000_003 + epoch) % 2**63)
        rows: list[int] = []
        while len(rows) < self.length:
            order = torch.randperm(len(self.chosen.indices), generator=generator)
            rows += self.chosen.indices[order].tolist()
        return rows[: self.length]

    def marked(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch with what the choice says of its samples; 0 for samples that were not chosen."""
        if not self.policy.keys:
            return batch
        if SAMPLE not in batch:
            raise InputError(f'the batch has no "{SAMPLE}"', where="selection", hint="Let the collator give it.")
        rows = self._place[batch[SAMPLE].cpu()]
        found = {}
        for key in self.policy.keys:
            values = self.chosen.batch[key][rows.clamp_min(0)]
            values[rows < 0] = 0
            found[key] = values.to(batch[SAMPLE].device)
        return {**batch, **found}

    def state_dict(self) -> dict[str, Any]:
        """Return the choice and what the policy remembers, as plain data."""
        values = {k: [str(v.dtype).removeprefix("torch."), v.tolist()] for k, v in self.chosen.batch.items()}
        order = None if self.chosen.order is None else self.chosen.order.tolist()
        chosen = {"indices": self.chosen.indices.tolist(), "batch": values, "facts": dict(self.chosen.facts)}
        chosen["order"] = order
        return {"policy": self.policy.state_dict(), "epoch": self.epoch, "chosen": chosen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what ``state_dict`` returned."""
        try:
            row = state["chosen"]
            batch = {k: torch.tensor(v, dtype=getattr(torch, kind)) for k, (kind, v) in row["batch"].items()}
            order = None if row["order"] is None else torch.tensor(row["order"], dtype=torch.int64)
            chosen = Chosen(torch.tensor(row["indices"], dtype=torch.int64), batch, row["facts"], order)
            epoch = int(state["epoch"])
            self._check(chosen)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IntegrityError("holds no state of a selection", where="selection") from error
        self.policy.load_state_dict(state["policy"])
        self.epoch = self._told = epoch
        self._take(chosen)

    def _take(self, chosen: Chosen) -> None:
        self.chosen = chosen
        self._place = torch.full((self.size,), -1)  # sample number -> its row in the choice
        self._place[chosen.indices] = torch.arange(len(chosen.indices))

    def _check(self, chosen: Chosen) -> None:
        indices = chosen.indices
        if not len(indices):
            raise InputError("no sample was chosen", where="selection", got=dict(chosen.facts))
        if indices.min() < 0 or indices.max() >= self.size or len(indices.unique()) < len(indices):
            raise InputError("the choice names samples twice or that do not exist", where="selection")
        order = chosen.order
        if order is not None and (len(order) != self.length or not torch.isin(order, indices).all()):
            raise InputError("the order of the epoch is none of the choice", where="selection", expected=self.length)
        for key in self.policy.keys:
            if key not in chosen.batch or len(chosen.batch[key]) != len(indices):
                raise InputError(f'the choice lacks "{key}" for each of its samples', where="selection")

    def _batches(self, dataset: Any, indices: torch.Tensor | None, times: int) -> Iterator[Mapping[str, Any]]:
        trainer, size = self.trainer, times * self.trainer.args.train_batch_size
        numbers = range(len(dataset)) if indices is None else indices.tolist()
        for start in range(0, len(numbers), size):
            rows = numbers[start : start + size]
            yield trainer._prepare_inputs(trainer.data_collator(fetch(dataset, rows)))

    @torch.no_grad()
    def _measured(
        self, dataset: Any, side: str, read: Read, indices: torch.Tensor | None, times: int = 1
    ) -> torch.Tensor:
        """Run a model over samples, so many training batches at a time, and join what is read from its output."""
        trainer = self.trainer
        live = trainer.teacher
        if side == "teacher" and live is None:
            raise RecipeError("the selection asks the teacher, but there is none", where="teacher")
        model, pick = (trainer.model.student, trainer.model.pick) if side == "student" else (live.model, live.pick)
        name = self.policy.on if side == "student" else self.policy.teacher_on or self.policy.on
        outputs, inside = outputs_and_taps(name)
        taps = Taps(model, inside, where="selection")
        was_training, rows = model.training, []
        model.eval()
        try:
            for batch in self._batches(dataset, indices, times):
                with trainer.accelerator.autocast():
                    signal = observe(model, pick(batch), taps, outputs, inside)
                rows.append(read(read_output(signal, name), batch).cpu())
        finally:
            taps.remove()
            model.train(was_training)
        return torch.cat(rows)

    def _entries(self, dataset: Any, key: str) -> torch.Tensor:
        rows = []
        for batch in self._batches(dataset, None, 4):
            if key not in batch:
                raise InputError(f'the batch has no "{key}"', where="selection")
            rows.append(batch[key].cpu())
        return torch.cat(rows)


class _SelectedSampler(Sampler[int]):
    def __init__(self, selector: Selector):
        self._selector = selector

    def __len__(self) -> int:
        return self._selector.length

    def __iter__(self) -> Iterator[int]:
        yield from self._selector.order(self._selector.epoch)
