"""The one trained module: a student and the parts of its objectives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from potstill.errors import InputError, PotstillError, RecipeError
from potstill.losses.fused import BUDGET, LazyLogits, Term, fused_terms
from potstill.objectives import Objective, Seen
from potstill.objectives.base import TEACHER
from potstill.taps import Signal, Taps, observe
from potstill.taps.inputs import model_inputs
from potstill.taps.signal import RestingHead
from potstill.train.auto_weight import AutoWeights
from potstill.train.grad_mag import GradMag

Signals = Signal | Mapping[str, Signal] | None
"""Of the teacher, of several by name, or of none."""


@dataclass
class DistillOutput:
    """Loss of one forward pass and its terms.

    Attributes:
        loss: Σ weight · total / count, with a graph.
        totals: Objective name -> detached sum over the units of this batch.
        counts: Objective name -> units of this batch.
    """

    loss: torch.Tensor
    totals: dict[str, torch.Tensor] = field(default_factory=dict)
    counts: dict[str, torch.Tensor] = field(default_factory=dict)


class DistillModule(nn.Module):
    """Student and parts in one module, so that DDP, FSDP2 and compile see everything that touches a gradient.

    Works in a loop of your own::

        module = DistillModule(student, objectives)
        teacher = LiveTeacher(model, outputs=module.teacher_outputs, taps=module.teacher_taps)
        module.build_parts(batch, teacher.signal(batch))
        loss = module(batch, teacher.signal(batch)).loss

    Automatic weights are told of every step by ``module.alphas.take({name: mean of the term})``, and those of GradMag
    that a step is over by ``module.balance.take()``.

    Args:
        student: The model to train; it is exported alone.
        objectives: Terms of the loss; names must be unique.
        inputs: Batch keys the student takes; ``None`` = those its ``forward`` names.
    """

    def __init__(self, student: nn.Module, objectives: Sequence[Objective], *, inputs: Iterable[str] | None = None):
        super().__init__()
        if not objectives:
            raise RecipeError("there is no objective", where="objectives", hint="Name at least one loss.")
        names = [o.name for o in objectives]
        twice = {n for n in names if names.count(n) > 1}
        if twice:
            raise RecipeError(f'two objectives are called "{min(twice)}"', where="objectives", hint="Give each a name.")
        self.student = student
        self.parts = nn.ModuleDict()
        self.shapes: dict[str, list[int]] = {}  # tap -> what it saw when the parts were built
        self._blank: list[nn.Module] = []  # in a list, so that it is no child
        self._keep_resting = True  # whether a resting module has parameters that nothing else reaches
        self.objectives = list(objectives)
        self.progress = 0.0  # share of the training that is done; whoever trains sets both before a step
        self.epoch = 0.0
        self.alphas = AutoWeights(self.objectives, self.parts)
        self.head: RestingHead | None = None  # the student's output head, if it is left out of every pass
        self.logits_budget = BUDGET  # bytes that its logits may take at a time
        self.balance = GradMag(self.objectives, self.parts)
        self._taps = Taps(student, dict.fromkeys(t for o in objectives for t in o.student_taps), where="student taps")
        self.pick = model_inputs(student, inputs, labels=any(o.needs_labels for o in objectives))

    @property
    def modules_named(self) -> list[str]:
        """Names of the modules that objectives belong to, in order: what a policy can choose among."""
        return list(dict.fromkeys(o.module for o in self.objectives if o.module is not None))

    @property
    def teacher_names(self) -> list[str]:
        """Names of all teachers that objectives read."""
        return list(dict.fromkeys(name for o in self.objectives if o.reads_teacher for name in o.of))

    @property
    def teacher_outputs(self) -> list[str]:
        """Outputs the teacher has to return."""
        return self.outputs_of(TEACHER)

    @property
    def teacher_taps(self) -> list[str]:
        """What to look at inside the teacher."""
        return self.taps_of(TEACHER)

    def outputs_of(self, teacher: str) -> list[str]:
        """Outputs that one of several teachers has to return."""
        return list(dict.fromkeys(n for o in self.objectives if teacher in o.of for n in o.teacher_outputs))

    def taps_of(self, teacher: str) -> list[str]:
        """What to look at inside one of several teachers."""
        return list(dict.fromkeys(t for o in self.objectives if teacher in o.of for t in o.teacher_taps))

    def active(self, weights: Mapping[str, float] | None = None) -> list[tuple[Objective, float]]:
        """Return the objectives that play under these module weights, each with its weight in the loss."""
        chosen = []
        for objective in self.objectives:
            gate = 1.0 if objective.module is None or weights is None else weights.get(objective.module, 0.0)
            if objective.weight * gate:
                chosen.append((objective, objective.weight * gate))
        return chosen

    def teachers_for(self, weights: Mapping[str, float] | None = None) -> list[str]:
        """Return the names of the teachers that the active objectives read; the others need not be run."""
        return list(dict.fromkeys(name for o, _ in self.active(weights) if o.reads_teacher for name in o.of))

    def teacher_taps_for(self, weights: Mapping[str, float] | None = None, teacher: str = TEACHER) -> list[str]:
        """Return only the taps of a teacher that the active objectives read."""
        return list(dict.fromkeys(t for o, _ in self.active(weights) if teacher in o.of for t in o.teacher_taps))

    def observe(self, batch: Mapping[str, Any], objectives: Iterable[Objective] | None = None) -> Signal:
        """Run the student once and return what the objectives read."""
        chosen = self.objectives if objectives is None else list(objectives)
        outputs = dict.fromkeys(n for o in chosen for n in o.student_outputs)
        taps = list(dict.fromkeys(t for o in chosen for t in o.student_taps))
        with ExitStack() as around:
            contexts = dict.fromkeys(o.around for o in chosen if o.around is not None)
            notes = {context: around.enter_context(context(self.student)) for context in contexts}
            signal = observe(self.student, self.pick(batch), self._taps, outputs, taps, self.head)
        signal.notes = notes
        return signal

    def train(self, mode: bool = True) -> DistillModule:
        """Set the mode where it is another: the Trainer asks before every step, and setting costs more than looking."""
        if any(module.training != mode for module in self.modules()):
            super().train(mode)
        return self

    def close(self) -> None:
        """Take the taps off the student, so that a later stage or the export finds it as it was."""
        self._taps.remove()

    @property
    def blank(self) -> nn.Module | None:
        """A plain copy of the student without weights, if it was sharded by ``potstill.train.shard``."""
        return self._blank[0] if self._blank else None

    def keep_blank(self, student: nn.Module) -> None:
        """Keep a copy of the student, taken by ``copy.deepcopy``, to gather weights into; our hooks come off it."""
        self._taps.remove_from(student)
        self._blank = [student]

    @torch.no_grad()
    def build_parts(self, batch: Mapping[str, Any], signal: Signals, *, seed: int = 0) -> None:
        """Probe the student's shapes on one batch and create the parts, seeded apart from the global generator."""
        signals = _by_name(signal)
        was_training = self.student.training
        self.student.eval()
        student = self.observe(batch)
        self.student.train(was_training)
        self.shapes = {tap: list(value.shape) for tap, value in student.tapped.items()}
        example = next(self.student.parameters())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for objective in self.objectives:
                with _placed_at(objective):
                    part = objective.build_part(student, signals.get(objective.of[0]))
                if part is not None:
                    self.parts[objective.name.replace(".", "_")] = part.to(example.device, example.dtype)
        self.alphas.build(example.device)
        self.balance.build(self.student, example.device)

    @torch.no_grad()
    def survey(self, batches: Iterable[tuple[Mapping[str, Any], Signals]]) -> None:
        """Show the training set once to the objectives that ask for it, the student left alone."""
        objectives = [o for o in self.objectives if o.surveys]
        for batch, signal in batches:
            signals = _by_name(signal)
            for objective in objectives:
                with _placed_at(objective):
                    objective.look(self._seen(batch, None, signals, objective), self.part_of(objective))
        for objective in objectives:
            with _placed_at(objective):
                objective.finish(self.part_of(objective))

    @torch.no_grad()
    def before_step(self, progress: float, epoch: float) -> None:
        """Say how far the training is, and let objectives put things right before an optimiser step."""
        self.progress, self.epoch = progress, epoch
        for objective in self.objectives:
            objective.before_step(self.student, self.part_of(objective))

    def rehearse(self, batch: Mapping[str, Any], signal: Signals) -> tuple[dict[str, float], list[str]]:
        """Go through one step without taking it, and freeze the student's parameters that no objective reaches.

        They would only suffer weight decay, and DDP would wait for their gradients for ever.

        Returns:
            The value of every objective before weighting, and the names of the frozen parameters.
        """
        with _unchanged(self):
            output = self(batch, signal)
            output.loss.backward()
        names = [n for n, p in self.student.named_parameters() if p.requires_grad and p.grad is None]
        self.zero_grad(set_to_none=True)
        for name in names:
            self.student.get_parameter(name).requires_grad_(False)
        self._keep_resting = self._depends_on_the_arm(batch, signal)
        values = {n: (total / output.counts[n].clamp_min(1)).item() for n, total in output.totals.items()}
        self.alphas.begin(values)
        self.balance.forget()
        return values, names

    def _depends_on_the_arm(self, batch: Mapping[str, Any], signal: Signals) -> bool:
        """Return whether some parameters of the student have a gradient only while a certain module plays."""
        if all(o.module is None for o in self.objectives):
            return False
        if not self.active({}):
            return True
        self._keep_resting = False
        with _unchanged(self):
            self(batch, signal, {}).loss.backward()
        found = any(p.requires_grad and p.grad is None for p in self.student.parameters())
        self.zero_grad(set_to_none=True)
        return found

    def part_rates(self) -> Iterator[tuple[nn.Parameter, float]]:
        """Yield the parameters of parts that have a learning rate of their own, with it."""
        for objective in self.objectives:
            part = self.part_of(objective)
            if part is not None and objective.learning_rate is not None:
                for parameter in part.parameters():
                    yield parameter, objective.learning_rate

    def weight_of(self, objective: Objective) -> float:
        """Return the factor of an objective in the loss, its automatic part included."""
        factors = (self.alphas.of(objective), self.balance.of(objective))
        return objective.weight * math.prod(1.0 if f is None else f.item() for f in factors)

    def part_of(self, objective: Objective) -> nn.Module | None:
        """Return the part of an objective, or None."""
        name = objective.name.replace(".", "_")
        return self.parts[name] if name in self.parts else None  # noqa: SIM401 - a ModuleDict has no get

    def count(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Count the units of every objective in one batch; needs no forward pass."""
        return {o.name: o.count(batch) for o in self.objectives}

    def forward(
        self,
        batch: Mapping[str, Any],
        signal: Signals = None,
        weights: Mapping[str, float] | None = None,
        counts: Mapping[str, torch.Tensor] | None = None,
    ) -> DistillOutput:
        """Compute the loss of one batch.

        Args:
            batch: What the collator made.
            signal: The teacher's signal for this batch, or those of several teachers by name; may be None if no
                objective reads one.
            weights: Module -> factor, from a policy; a module left out is off, None = all on.
            counts: Objective -> units to divide by (of the whole accumulation window and all ranks); None = of this
                batch.

        Raises:
            InputError: An active objective needs a teacher and there is no signal.
        """
        active = self.active(weights)
        playing = [o for o, _ in active]
        resting = [o for o in self.objectives if o.weight and o not in playing] if self._keep_resting else []
        student = self.observe(batch, [*playing, *resting])
        signals = _by_name(signal)
        output = DistillOutput(self._anchor(playing, resting, student))
        terms: dict[str, Term] = {}
        for objective, weight in active:
            seen = self._seen(batch, student, signals, objective)
            is_lazy = objective.takes_lazy and isinstance(student.outputs.get(objective.on), LazyLogits)
            with _placed_at(objective):
                term = objective.lazy_term(seen) if is_lazy else None
                total = objective.total(seen, self.part_of(objective)) if term is None else None
                here = objective.count(batch)
            units = here if counts is None else counts[objective.name]
            output.counts[objective.name] = here
            for own in (self.alphas.of(objective), self.balance.of(objective)):
                weight = weight if own is None else weight * own
            if term is not None:
                terms[objective.name] = replace(term, factor=weight / units.clamp_min(1))
                continue
            output.totals[objective.name] = total.detach()
            mean = total / units.clamp_min(1).to(total.dtype)
            if torch.is_grad_enabled():
                self.balance.add(objective, mean)
            output.loss = output.loss + weight * mean
        if terms:
            # All terms on the head in one pass over its rows.
            loss, totals = fused_terms(student.outputs[self.head.output], [*terms.values()], budget=self.logits_budget)
            output.loss = output.loss + loss
            output.totals |= dict(zip(terms, totals))
        return output

    def total_of(self, objective: Objective, batch: Mapping[str, Any], signal: Signals) -> torch.Tensor:
        """Compute one objective by itself, with a forward pass of its own."""
        seen = self._seen(batch, self.observe(batch, [objective]), _by_name(signal), objective)
        return objective.total(seen, self.part_of(objective))

    def _seen(
        self, batch: Mapping[str, Any], student: Signal | None, signals: Mapping[str, Signal], objective: Objective
    ) -> Seen:
        """Return what an objective is shown: of the teachers those it reads."""
        own = {name: signals[name] for name in objective.of if name in signals}
        again = None if student is None else objective.second_view(batch)
        second = None if again is None else self.observe(again, [objective])
        if objective.reads_teacher and len(own) < len(objective.of):
            missing = next(name for name in objective.of if name not in own)
            what = "needs a teacher" if missing == TEACHER else f'needs the teacher "{missing}"'
            raise InputError(what, where=objective.name, hint="Pass the teacher's signal.")
        first = own.get(objective.of[0])
        return Seen(batch, student, first, own, self.progress, self.epoch, second, self.logits_budget)

    def _anchor(self, playing: Sequence[Objective], resting: Sequence[Objective], student: Signal) -> torch.Tensor:
        """Return 0 with an edge to all that has no gradient now because its module rests.

        DDP with ``find_unused_parameters=False`` waits for the gradient of every parameter: an arm that rests must
        leave neither its projector without one nor layers that only its objective reaches. With a zero there the
        optimiser does the same in one process, under DDP and sharded.
        """
        idle = set(self.parts) - {o.name.replace(".", "_") for o in playing}
        zero = torch.zeros((), device=next(self.student.parameters()).device)
        for name in sorted(idle):
            for parameter in self.parts[name].parameters():
                zero = zero + 0.0 * parameter.sum().float()
        for objective in resting:
            for value in [student.tapped[t] for t in objective.student_taps] + [
                student.outputs[n] for n in objective.student_outputs
            ]:
                for tensor in _tensors_of(value):
                    zero = zero + 0.0 * tensor.sum(dtype=torch.float32)
        return zero


def _tensors_of(value: torch.Tensor | LazyLogits) -> list[torch.Tensor]:
    """Return what carries the graph of an output."""
    if isinstance(value, LazyLogits):
        return [x for x in (value.hidden, value.weight, value.bias) if x is not None]
    return [value]


def _by_name(signal: Signals) -> Mapping[str, Signal]:
    return {TEACHER: signal} if isinstance(signal, Signal) else signal or {}


def running_statistics(module: nn.Module) -> list[torch.Tensor]:
    """Return the buffers that follow the data of every forward pass in training: those of batch norms."""
    return [b for m in module.modules() if isinstance(m, _NormBase) for b in m.buffers(recurse=False)]


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Put back running statistics and the random generator after a pass that is only a trial."""
    kept = [(buffer, buffer.clone()) for buffer in running_statistics(module)]
    with torch.random.fork_rng(devices=[]):
        yield
    for buffer, value in kept:
        buffer.copy_(value)


@contextmanager
def _placed_at(objective: Objective) -> Iterator[None]:
    """Name the objective in whatever a loss or a projector refuses."""
    try:
        yield
    except PotstillError as error:
        if not (error.where or "").startswith(objective.name):
            error.at(objective.name)
        raise
