"""GradMag: terms of the loss weighed so that each pulls equally hard at the student's last layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from potstill.errors import RecipeError
from potstill.objectives import Objective

EPS = 1e-8


class GradMagWeight(nn.Module):
    """The weight of one objective, kept among the parts, so that it is in every checkpoint.

    Attributes:
        value: The weight; those of all balanced objectives add up to 1.
    """

    def __init__(self, value: float):
        super().__init__()
        self.register_buffer("value", torch.tensor(value))


class GradMag:
    """Weights w_k = 1 / (‖∇_last loss_k‖ + 1e-8), divided by their sum, of the objectives that are ``balanced``.

    The gradient is that of an objective's mean with respect to the student's last layer, over the whole accumulation
    window and all ranks, so how a batch is split does not matter. It costs one backward pass through that layer per
    objective and micro-batch. The weights of a step were measured in the step before, those of the first in a trial of
    its own: the norm of a window is known only when it is over. An objective that rests keeps its weight.

    Not for terms of which one is meant to be small, such as a regulariser: they become as strong as the others.

    Source:
        Minixhofer et al., arXiv 2503.20083, section 4, without its smoothing; there weights are those of the same step.

    Args:
        objectives: All terms of the loss.
        parts: Where the weights are kept.
    """

    def __init__(self, objectives: Sequence[Objective], parts: nn.ModuleDict):
        self.objectives = [o for o in objectives if o.balanced]
        self._parts = parts
        self._layer: list[nn.Parameter] = []
        self._path = ""
        self._window: dict[str, torch.Tensor] = {}
        self._before: list[torch.Tensor] = []

    def build(self, student: nn.Module, device: torch.device) -> None:
        """Find the last layer and create the weights, equal ones."""
        if not self.objectives:
            return
        self._path, layer = last_layer(student, f"{self.objectives[0].name}.weight")
        self._layer = [p for p in layer.parameters() if p.requires_grad]
        for objective in self.objectives:
            self._parts[_key(objective)] = GradMagWeight(1 / len(self.objectives)).to(device)

    def of(self, objective: Objective) -> torch.Tensor | None:
        """Return the weight of an objective, a scalar without a graph, or None if it is not balanced."""
        return self._parts[_key(objective)].value if objective.balanced else None

    def add(self, objective: Objective, loss: torch.Tensor) -> None:
        """Take in the share of one micro-batch in an objective's mean; does nothing where there is no graph."""
        if not (objective.balanced and self._layer and loss.requires_grad):
            return
        grads = torch.autograd.grad(loss, self._layer, retain_graph=True, allow_unused=True)
        if all(g is None for g in grads):
            raise RecipeError(
                f'its gradient does not reach the last layer "{self._path}"',
                where=f"{objective.name}.weight",
                expected="a number",
                got="gradmag",
            )
        flat = torch.cat(
            [(torch.zeros_like(p) if g is None else g).flatten().float() for p, g in zip(self._layer, grads)]
        )
        kept = self._window.get(objective.name)
        self._window[objective.name] = flat if kept is None else kept + flat

    def forget(self) -> None:
        """Drop what the window has shown so far."""
        self._window = {}

    @torch.no_grad()
    def take(self, sum_over_ranks: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> None:
        """Set the weights by what the window has shown, and begin a new one; every rank calls it.

        A window in which a gradient is not finite changes nothing.
        """
        seen = [o for o in self.objectives if o.name in self._window]
        grads, self._window = self._window, {}
        self._before = [self._parts[_key(o)].value.clone() for o in self.objectives]
        if not seen:
            return
        norms = torch.stack([sum_over_ranks(grads[o.name]).double().norm() for o in seen])
        if not bool(torch.isfinite(norms).all()):
            return
        weights = 1 / (norms + EPS)
        # Those that rest keep theirs; the others share what is left of 1.
        share = sum(float(self._parts[_key(o)].value) for o in seen)
        for objective, weight in zip(seen, share * weights / weights.sum()):
            self._parts[_key(objective)].value.copy_(weight)

    @torch.no_grad()
    def undo(self) -> None:
        """Put back the weights before the last ``take``: its step was dropped."""
        for objective, value in zip(self.objectives, self._before):
            self._parts[_key(objective)].value.copy_(value)


def last_layer(student: nn.Module, where: str) -> tuple[str, nn.Module]:
    """Return path and module of the last layer of the student that is trained: of its longest list of layers.

    Of lists of equal length the last one counts, which is the decoder's where there are several.

    Raises:
        RecipeError: There is no list of layers, or none of it is trained.
    """
    best: tuple[int, str, nn.ModuleList] | None = None
    for path, module in student.named_modules():
        if isinstance(module, nn.ModuleList) and (best is None or len(module) >= best[0]):
            best = (len(module), path, module)
    for i in range(len(best[2]) - 1, -1, -1) if best is not None else ():
        if any(p.requires_grad for p in best[2][i].parameters()):
            return f"{best[1]}.{i}", best[2][i]
    raise RecipeError(
        "the student has no list of layers of which one is trained", where=where, expected="a number", got="gradmag"
    )


def _key(objective: Objective) -> str:
    return f"{objective.name}_gradmag".replace(".", "_")
