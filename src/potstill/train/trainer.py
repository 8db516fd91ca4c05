"""Distillation on transformers' Trainer: what it does not know about teachers, parts and policies.

Each override below says why it is there. They were written against transformers 5.23 and are covered one by one by
``tests/train/test_trainer_contract.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import clip_grads_with_norm_
from transformers import PrinterCallback

from potstill.data.generation import OnPolicySampler, as_if_written
from potstill.data.selection import SelectionPolicy
from potstill.data.sources import fetch
from potstill.errors import InputError, IntegrityError, RecipeError
from potstill.objectives import Objective
from potstill.objectives.base import TEACHER
from potstill.taps import Signal
from potstill.teachers import LiveTeacher, live_teachers
from potstill.train.arguments import DistillationArguments
from potstill.train.callbacks import BeforeEpoch, LogLastStep
from potstill.train.guard import Guard
from potstill.train.history import History
from potstill.train.module import DistillModule
from potstill.train.probe import Probe
from potstill.train.resumable import ResumableTrainer
from potstill.train.rollouts import Rollouts
from potstill.train.rounds import Rounds
from potstill.train.selecting import Selector
from potstill.train.sharding import apart, gradient_norm, is_sharded, shard, whole_student
from potstill.train.workers import start_worker


class DistillationTrainer(ResumableTrainer):
    """Trains a student against a teacher under several objectives, and lets a policy choose the module each round.

    Args:
        student: The model to train, or a ``DistillModule`` already built; one that is sharded already stays as it is.
        objectives: Terms of the loss (not with a ``DistillModule``).
        teacher: A model or a ``LiveTeacher``, or several by the names that objectives use; None = train on labels.
        policy: Chooses which module's objectives play; None = all, always.
        selection: Chooses which samples of the training set the next epoch is made of; None = all.
        rollouts: Has the student write some of the completions it is trained on, while it trains; None = none.
        args: Settings.
        train_dataset: Map-style dataset. One whose ``is_generated`` is true is read in order, others are shuffled by
            (seed, epoch). One with ``set_epoch`` is told the epoch before it is read.
        plain_dataset: The same samples without augmentation, for surveys and for selection; None = ``train_dataset``.
        heldout_dataset: Samples that are not trained on, for a selection that measures on them.
        data_collator: Makes batches.
        history: File to which steps and rounds are appended as JSON lines; None = keep only in memory.
        stage: Name written into the history, where several stages share a file.
        nonfinite: Folder for batches whose terms or gradients are not finite; None = "nonfinite" in the output folder.

    Raises:
        RecipeError: A policy's arm names a module that no objective belongs to, or there is nothing to train on.
    """

    # The loss is divided by the counts of the whole window already; dividing again by the number of micro-batches
    # would make gradients depend on the split.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        student: nn.Module,
        objectives: Sequence[Objective] | None = None,
        *,
        teacher: nn.Module | LiveTeacher | Mapping[str, nn.Module | LiveTeacher] | None = None,
        policy: Any | None = None,
        selection: SelectionPolicy | None = None,
        rollouts: OnPolicySampler | None = None,
        args: DistillationArguments,
        train_dataset: Any,
        plain_dataset: Any = None,
        heldout_dataset: Any = None,
        data_collator: Any = None,
        history: Path | str | None = None,
        stage: str | None = None,
        nonfinite: Path | str | None = None,
        **kwargs: Any,
    ):
        module = student if isinstance(student, DistillModule) else DistillModule(student, objectives or [])
        named = teacher if isinstance(teacher, Mapping) else {} if teacher is None else {TEACHER: teacher}
        self.teachers = live_teachers(named, module.outputs_of, module.taps_of)
        for name in module.teacher_names:
            if name not in self.teachers:
                what = "the objectives compare with a teacher, but there is none"
                if name != TEACHER:
                    what = f'an objective compares with the teacher "{name}", but there is none of that name'
                raise RecipeError(what, where="teacher", hint="Name a model.")
        if len(train_dataset) < args.train_batch_size:
            raise RecipeError(
                "the dataset is smaller than one batch",
                where="data",
                expected=f"at least {args.train_batch_size} samples",
                got=len(train_dataset),
            )
        self.policy, self.selector, self.rollouts = policy, None, None
        self.plain_dataset = train_dataset if plain_dataset is None else plain_dataset
        self.heldout_dataset = heldout_dataset
        self._check_arms(module)
        for one in self.teachers.values():
            one.refuse_sharing(module.student)
        super().__init__(model=module, args=args, train_dataset=train_dataset, data_collator=data_collator, **kwargs)
        self.add_callback(LogLastStep())
        self.remove_callback(PrinterCallback)  # it prints every log as a dict; the history file has it all
        if args.n_gpu > 1:
            raise InputError(
                "several GPUs in one process would use DataParallel, which splits the teacher's signal wrongly",
                where="launch",
                hint="Start one process per GPU with torchrun, or set CUDA_VISIBLE_DEVICES to one.",
            )
        # get_batch_samples returns our counts as num_items_in_batch, also on transformers that lack the flag above.
        self.model_accepts_loss_kwargs = True
        self.history = History(history, stage=stage, is_writer=self.is_world_process_zero())
        self.rounds = None
        if policy is not None:
            self.rounds = Rounds(
                policy,
                module,
                args,
                draw_probe=self._draw_probe,
                sum_over_ranks=self._sum_over_ranks,
                agree=self._agree,
            )
        self._window: dict[str, list[float]] = {}  # objective -> [sum, count] since the last log
        self._step: dict[str, list[float]] = {}  # the same of the step under way, while a weight is measured
        self._loss = [0.0, 0]  # sum of the losses and steps taken since the last log, likewise
        self.guard = Guard(
            module,
            args,
            Path(nonfinite or Path(args.output_dir) / "nonfinite"),
            history=self.history,
            sum_over_ranks=self._sum_over_ranks,
        )
        for one in self.teachers.values():
            one.to(args.device)
        if module.balance.objectives:
            self._refuse_to_balance()
        if selection is not None:
            self.selector = Selector(selection, self)
        if rollouts is not None:
            self.rollouts = Rollouts(rollouts, self)
        told = [train_dataset.set_epoch] if hasattr(train_dataset, "set_epoch") else []
        told += [self.selector.begin_and_tell] if self.selector is not None else []
        self.add_callback(BeforeEpoch(*told))
        self._build_parts()

    @property
    def teacher(self) -> LiveTeacher | None:
        """The teacher that objectives read unless they name another."""
        return self.teachers.get(TEACHER)

    def signals(self, batch: Mapping[str, Any], weights: Mapping[str, float] | None = None) -> dict[str, Signal]:
        """Run the teachers that objectives read under these module weights on one batch."""
        return {
            name: self.teachers[name].signal(batch, self.model.teacher_taps_for(weights, name))
            for name in self.model.teachers_for(weights)
        }

    # -- set-up -------------------------------------------------------------------------------------------------

    def _check_arms(self, module: DistillModule) -> None:
        known = module.modules_named
        for arm in self.policy.arms if self.policy is not None else ():
            for name in arm:
                if name not in known:
                    raise RecipeError(
                        f'the arm names an unknown module "{name}"',
                        where="policy.arms",
                        expected=", ".join(known) or "an objective that belongs to a module",
                    )

    def _refuse_to_balance(self) -> None:
        """Refuse GradMag where gradients of single terms cannot be had or cannot be trusted."""
        for field, bad, why in (
            ("shard", self.args.shard, "a sharded student gives no gradient of a single term"),
            ("precision", self.args.fp16, "in fp16 small gradients of a single term are lost"),
        ):
            if bad:
                hint = "Give the objectives weights in numbers, or use bf16." if field == "precision" else None
                raise RecipeError(f"{why}, which weight: gradmag needs", where=f"train.{field}", hint=hint)

    def _build_parts(self) -> None:
        rows = range(min(self.args.train_batch_size, len(self.train_dataset)))
        if self.selector is not None:
            self.selector.begin(0)
            rows = self.selector.order(0)[: len(rows)]
        batch = self._prepare_inputs(self._collate(rows))
        signal = {name: self.teachers[name].signal(batch) for name in self.model.teacher_names}
        if not is_sharded(self.model):
            self.model.build_parts(batch, signal, seed=self.args.seed)
            self.model.survey(self._survey())
            if self.args.shard and self.args.world_size > 1:
                shard(self.model)
        if is_sharded(self.model):
            # accelerate would wrap it in DDP; so it only adds autocast. The module reduces its gradients itself.
            self.accelerator.prepare_model(self.model, device_placement=False, evaluation_mode=True)
        self.shapes = self.model.shapes, {k: list(v.shape) for s in signal.values() for k, v in s.tapped.items()}
        self.model.before_step(0.0, 0.0)
        self.start, self.untrained = self.model.rehearse(batch, signal)

    def _survey(self) -> Iterator[tuple[dict[str, Any], dict[str, Signal]]]:
        """Yield the training set in order, with the signals of the teachers: on every rank the same."""
        surveying = [o for o in self.model.objectives if o.surveys]
        if not surveying:
            return
        rows, size = len(self.plain_dataset), self.args.train_batch_size
        if getattr(self.plain_dataset, "is_generated", False):
            rows = min(rows, self.args.survey_samples)
        names = list(dict.fromkeys(name for o in surveying if o.reads_teacher for name in o.of))
        for start in range(0, rows, size):
            batch = self._prepare_inputs(self._collate(range(start, min(start + size, rows)), self.plain_dataset))
            yield batch, {name: self.teachers[name].signal(batch) for name in names}

    def _collate(self, indices: Sequence[int], dataset: Any = None) -> dict[str, Any]:
        batch = self.data_collator(fetch(self.train_dataset if dataset is None else dataset, indices))
        batch = batch if self.selector is None else self.selector.marked(batch)
        return batch if self.rollouts is None else as_if_written(batch)

    def _get_train_sampler(self, train_dataset=None):
        if self.selector is not None and (train_dataset is None or train_dataset is self.train_dataset):
            return self.selector.sampler
        # A generated sample is random by its index already; reading in order needs no permutation and resumes exactly.
        if getattr(train_dataset or self.train_dataset, "is_generated", False):
            return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)
        return super()._get_train_sampler(train_dataset)

    def get_train_dataloader(self):
        """Keep signals that go to all processes from the data workers: the step they interrupt is to be finished."""
        loader = super().get_train_dataloader()
        inner = getattr(loader, "base_dataloader", loader)  # accelerate wraps it
        inner.worker_init_fn = partial(start_worker, inner.worker_init_fn)
        return loader

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Give the parts their own parameter groups, with their own learning rate if one is set."""
        if self.optimizer is None:
            module = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(module))
            sharded = is_sharded(module)
            rates = {id(p): rate for p, rate in self.model.part_rates()}
            groups: dict[tuple[float, bool, bool, bool], list[nn.Parameter]] = {}
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    # Scalars are not sharded, and an optimiser updates sharded and plain tensors apart.
                    is_scalar, is_part = sharded and parameter.ndim == 0, ".parts." in f".{name}"
                    rate = rates.get(id(parameter), (self.args.part_learning_rate or 0.0) if is_part else 0.0)
                    groups.setdefault((rate, is_part, name in decayed, is_scalar), []).append(parameter)
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, module)
            rows = []
            for (rate, _, is_decayed, _), parameters in sorted(groups.items(), key=lambda item: item[0]):
                row = {"params": parameters, "weight_decay": self.args.weight_decay if is_decayed else 0.0}
                rows.append({**row, "lr": rate} if rate else row)
            self.optimizer = cls(rows, **options)
        return self.optimizer

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Count every objective's units over the whole accumulation window and all ranks, once, before any backward."""
        batches = []
        for _ in range(num_batches):
            try:
                batches.append(next(epoch_iterator))
            except StopIteration:
                break
        if not batches:
            return batches, None
        if self.selector is not None:
            batches = [self.selector.marked(batch) for batch in batches]
        if self.rollouts is not None:
            batches = [self.rollouts.rolled_out(batch) for batch in batches]
        step, samples = self.state.global_step, max(len(self.train_dataset), 1)
        self.model.before_step(step / max(self.state.max_steps, 1), step * self.rows_per_step / samples)
        self.guard.begin_step(step, batches)
        if self.guard.skips:  # what a step that is dropped must leave as it was
            self._before = {name: list(kept) for name, kept in self._window.items()}, list(self._loss)
        if self.state.global_step == 0 and self.model.alphas.are_measured:
            self._begin_alphas(batches)
        self.model.balance.forget()
        per_batch = [self.model.count(batch) for batch in batches]
        names = list(per_batch[0])
        sums = torch.stack([sum(c[n] for c in per_batch).to(device, torch.float64) for n in names])
        counts = dict(zip(names, self._sum_over_ranks(sums)))
        if self.state.global_step == 0 and self.model.balance.objectives:
            self._begin_balance(batches, counts)
        self._loss[1] += 1
        return batches, counts

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Turn the policy's round before the first micro-batch of the step on which it ends."""
        if self.rounds is not None:
            event = self.rounds.before_step(self.state.global_step)
            if event is not None:
                self.history.add(event)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._step and self.accelerator.sync_gradients:  # the window's last micro-batch
            self.model.alphas.take(self._means_of_step())
        if self.model.balance.objectives and self.accelerator.sync_gradients:
            self.model.balance.take(self._sum_over_ranks)
        return loss

    @torch.no_grad()
    def _begin_alphas(self, batches: Sequence[dict[str, Any]]) -> None:
        """Start the automatic weights from the whole first window: a batch of one process is not the same in all."""
        was_training = self.model.training
        self.model.eval()
        for batch in map(self._prepare_inputs, batches):
            with self.compute_loss_context_manager():
                output = self.model(batch, self.signals(batch))
            for name, total in output.totals.items():
                _add(self._step, name, total.item(), output.counts[name].item())
        self.model.train(was_training)
        self.model.alphas.begin(self._means_of_step())

    def _begin_balance(self, batches: Sequence[dict[str, Any]], counts: Mapping[str, torch.Tensor]) -> None:
        """Measure the first window once before it is trained on: GradMag's weights are those of the step before."""
        was_training = self.model.training
        self.model.eval()
        for batch in map(self._prepare_inputs, batches):
            with self.compute_loss_context_manager():
                self.model(batch, self.signals(batch), self.weights, counts)
        self.model.train(was_training)
        self.model.balance.take(self._sum_over_ranks)

    def _means_of_step(self) -> dict[str, float]:
        """Return the mean of every term over the whole window and all ranks, and forget them."""
        step, self._step = self._of_all_ranks(self._step), {}
        return {name: total / count for name, (total, count) in step.items()}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Ask the teacher, then call the wrapped module: its ``.module`` would skip the gradient reduction."""
        weights = self.weights
        with self.accelerator.autocast():
            signal = self.signals(inputs, weights)
        output = model(inputs, signal, weights, num_items_in_batch)
        names = list(output.totals)
        # One transfer from the device for all terms.
        values = [v[n].double() for v in (output.totals, output.counts) for n in names]
        *values, loss = torch.stack([*values, output.loss.detach().double()]).tolist()
        self.guard.check_terms(dict(zip(names, values)), inputs)
        self._loss[0] += loss
        for window in (self._window, self._step) if self.model.alphas.are_measured else (self._window,):
            for name, total, count in zip(names, values, values[len(names) :]):
                _add(window, name, total, count)
        # DDP averages gradients over ranks; the counts are those of all ranks, so the sum is wanted.
        loss = output.loss * self.args.world_size
        return (loss, output) if return_outputs else loss

    def _clip_grad_norm(self, model):
        """Measure before scaling: by a norm that is not finite clipping would spread NaN over every gradient."""
        norm = self._get_grad_norm(model)
        for parameters in apart(model.parameters()):
            clip_grads_with_norm_(parameters, self.args.max_grad_norm, norm)
        return norm

    def _get_grad_norm(self, model, grad_norm=None):
        """Measure the gradient, once a step, and let the guard stop at it or drop the step."""
        if grad_norm is not None:
            return grad_norm
        self.accelerator.unscale_gradients()
        norm = gradient_norm(model.parameters())
        # In fp16 a gradient that overflows is what the scaler lives by: it drops the step and lowers its scale.
        if self.accelerator.scaler is None:
            self.guard.check_gradient(norm, self._terms)
        if self.guard.drops_step():
            for parameter in model.parameters():
                parameter.grad = None  # optimisers pass over such parameters: no update, no decay, no momentum
            self._window, self._loss = self._before
            self.model.balance.undo()
            return torch.zeros_like(norm)
        return norm

    def _terms(self, inputs):
        """Yield batch, objective and sum for every active term of a micro-batch, each on its own.

        Sharded there is none: FSDP2 gives gradients by ``backward`` alone.
        """
        if is_sharded(self.model):
            return
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            signal = self.signals(inputs, self.weights)
            for objective, _ in self.model.active(self.weights):
                yield inputs, objective, self.model.total_of(objective, inputs, signal)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Evaluate the same objective as in training, with every module on."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            loss = model(inputs, self.signals(inputs)).loss
        return loss.detach(), None, None

    @property
    def weights(self) -> dict[str, float] | None:
        """Module -> factor of its objectives now; None without a policy."""
        return self.rounds.weights if self.rounds is not None else None

    @property
    def arm_name(self) -> str | None:
        """The arm being played, its modules joined with "+"."""
        return self.rounds.arm if self.rounds is not None else None

    def _draw_probe(self) -> Probe:
        """Draw the probe set once, by the seed; each rank keeps its share, with the teacher's signals."""
        size, ranks, rank = self.args.train_batch_size, self.args.world_size, self.args.process_index
        wanted = self.args.probe_batches * size * ranks
        generator = np.random.default_rng([self.args.seed, 0x9206E])
        # The same number on every rank: sharded, all have to run the model equally often.
        wanted = min(wanted, len(self.train_dataset) // ranks * ranks)
        ids = generator.choice(len(self.train_dataset), wanted, replace=False)
        mine = sorted(ids.tolist())[rank::ranks]
        batches = [self._prepare_inputs(self._collate(mine[i : i + size])) for i in range(0, len(mine), size)]
        return Probe(batches, [self.signals(b) for b in batches])

    def whole_student(self) -> nn.Module:
        """Return the student as a plain model, alike on every rank: gathered if it is sharded, else itself."""
        student = whole_student(self.model)
        if self.args.world_size > 1:
            for buffer in student.buffers():  # running statistics are those of each rank's own rows: the first's count
                first = buffer.detach().to(self.args.device)
                dist.broadcast(first, 0)
                buffer.copy_(first)
        return student

    def _agree(self, arm: int) -> int:
        """Take rank 0's choice on every rank."""
        if self.args.world_size == 1:
            return arm
        choice = torch.tensor([arm], device=self.args.device)
        dist.broadcast(choice, 0)
        if choice.item() != arm:
            raise IntegrityError("the ranks' policies disagree", where="policy", hint="Start all ranks with one seed.")
        return arm

    def train(self, resume_from_checkpoint=None, **kwargs):
        """Train; close the last round at the end. ``True`` resumes from the newest complete checkpoint.

        Raises:
            InputError: Sharding was asked for, but there is one process.
            IntegrityError: The checkpoint is damaged, or cannot be gone on from by these processes.
        """
        if self.args.shard and not is_sharded(self.model):
            raise InputError(
                "there is one process: nothing to split the student over",
                where="train.shard",
                hint="Start several with torchrun, or set train.shard: false.",
            )
        result = super().train(resume_from_checkpoint, **kwargs)
        if self.rounds is not None and self.state.global_step >= self.state.max_steps:
            event = self.rounds.close(self.state.global_step)
            if event is not None:
                self.history.add(event)
        return result

    def _progress(self) -> dict[str, Any]:
        """Return the policy's rounds, what has not been logged yet (of all ranks together) and the guard's count."""
        return {
            "rounds": None if self.rounds is None else self.rounds.state_dict(),
            "window": self._of_all_ranks(self._window),
            "loss": [self._loss_of_all_ranks(), self._loss[1]],
            "skips_in_a_row": self.guard.in_a_row,
            **({} if self.selector is None else {"selection": self.selector.state_dict()}),
        }

    def _begin(self, saved: dict[str, Any] | None, where: str) -> None:
        """Take up what ``_progress`` returned, or start afresh; cut the history back to where training goes on."""
        if saved is not None:
            if (self.rounds is None) != (saved["rounds"] is None):
                raise IntegrityError("the checkpoint was made with another policy", where=where)
            total, steps = saved["loss"]
            is_first = self.is_world_process_zero()
            self._window, self._loss = (saved["window"], [total, steps]) if is_first else ({}, [0.0, steps])
            self.guard.in_a_row = saved["skips_in_a_row"]
            if self.rounds is not None:
                self.rounds.load_state_dict(saved["rounds"])
            if self.selector is not None:
                self.selector.load_state_dict(saved["selection"])
            if self.rollouts is not None:
                self.rollouts.load(where)
        self.history.rewind(self.state.global_step)

    def _save_rng_state(self, output_dir: str) -> None:
        """Keep beside each rank's generators what its student wrote; on this the Trainer calls every rank."""
        super()._save_rng_state(output_dir)
        if self.rollouts is not None:
            self.rollouts.save(output_dir)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write the window's mean of every term beside the Trainer's own numbers."""
        if "loss" in logs:
            weights = {o.name: self.model.weight_of(o) for o in self.model.objectives}
            terms = {
                name: {"value": total / max(count, 1.0), "weight": weights[name], "count": int(count)}
                for name, (total, count) in self._of_all_ranks(self._window).items()
            }
            for objective in self.model.objectives:
                if objective.name in terms and (notes := objective.notes(self.model.part_of(objective))):
                    terms[objective.name]["notes"] = notes
            self._window = {}
            # The Trainer (5.23) forgets on resuming what it has not logged, and counts skipped steps.
            loss, steps = self._loss_of_all_ranks(), self._loss[1]
            logs["loss"] = loss / steps if steps else None
            self._loss = [0.0, 0]
            self.history.add(
                {
                    "event": "step",
                    "step": self.state.global_step,
                    "arm": self.arm_name,
                    "loss": logs["loss"],
                    "terms": terms,
                    "learning_rate": logs.get("learning_rate"),
                    "seconds": round(self.seconds, 3),
                }
            )
        super().log(logs, start_time)
        # All logs are in the history; every checkpoint would hold them once more, and memory grow with the run.
        del self.state.log_history[:-1]

    def _of_all_ranks(self, window: dict[str, list[float]]) -> dict[str, list[float]]:
        names = [o.name for o in self.model.objectives]
        sums = torch.tensor([window.get(n, [0.0, 0.0]) for n in names], dtype=torch.float64)
        rows = self._sum_over_ranks(sums.to(self.args.device)).tolist()
        return {name: row for name, row in zip(names, rows) if row[1]}

    def _loss_of_all_ranks(self) -> float:
        return self._sum_over_ranks(torch.tensor(self._loss[0], dtype=torch.float64, device=self.args.device)).item()


def _add(window: dict[str, list[float]], name: str, total: float, count: float) -> None:
    kept = window.setdefault(name, [0.0, 0.0])
    kept[0] += total
    kept[1] += count
