"""Watches every step for terms and gradients that are not finite, and stops the run or leaves the step out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from potstill.objectives import Objective
from potstill.train.arguments import DistillationArguments
from potstill.train.history import History
from potstill.train.module import DistillModule, running_statistics
from potstill.train.nonfinite import Found, sample_ids, save_batch
from potstill.train.sharding import own_share

SKIPS_IN_A_ROW = 10
"""So many skipped steps in a row end a run that skips: it is the student that is broken then, not a batch."""
_HINT = "Start again in a new folder with a lower train.learning_rate, with train.max_grad_norm set, or in fp32"

Terms = Callable[[Any], Iterable[tuple[Mapping[str, Any], Objective, torch.Tensor]]]


class Guard:
    """One step at a time: ``begin_step``, ``check_terms`` per micro-batch, ``check_gradient``, ``drops_step``.

    Args:
        module: The unwrapped module.
        args: ``on_nonfinite``, ranks.
        folder: Where bad batches are kept.
        history: Gets an event for every skipped step.
        sum_over_ranks: Sums a tensor over all ranks.
    """

    def __init__(
        self,
        module: DistillModule,
        args: DistillationArguments,
        folder: Path,
        *,
        history: History,
        sum_over_ranks: Callable[[torch.Tensor], torch.Tensor],
    ):
        self.module, self.args, self.folder, self.history = module, args, folder, history
        self._sum = sum_over_ranks
        self.skips = args.on_nonfinite == "skip"
        self.in_a_row = 0
        self._step = 0
        self._batches: Sequence[Any] = ()
        self._found: list[Found] = []  # on this rank, in this step
        self._buffers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def begin_step(self, step: int, batches: Sequence[Any]) -> None:
        """Look at the micro-batches of a new step."""
        self._step, self._batches, self._found = step, batches, []
        if self.skips:
            # They take in the NaN of a forward pass; no other buffer follows the data.
            self._buffers = [(b, b.clone()) for b in running_statistics(self.module)]

    def check_terms(self, totals: Mapping[str, float], batch: Mapping[str, Any]) -> None:
        """Stop at a term that is not finite, or note it: a step to be skipped still takes part in all reductions.

        Args:
            totals: Objective name -> sum over this micro-batch.
            batch: The micro-batch.
        """
        bad = next((name for name, total in totals.items() if not math.isfinite(total)), None)
        if bad is not None and not self._found:
            objective = next(o for o in self.module.objectives if o.name == bad)
            self._keep(f'the term "{bad}" became {totals[bad]}', objective, batch)

    def check_gradient(self, norm: torch.Tensor, terms: Terms) -> None:
        """Stop at a gradient whose norm is not finite, or note it.

        Args:
            norm: Of the whole gradient, before clipping.
            terms: Computes the terms of a micro-batch anew, to find out which of them is to blame.
        """
        if not self._found and not torch.isfinite(norm):
            self._keep(*self._blame(norm.item(), terms))

    def drops_step(self) -> bool:
        """Return whether any rank found something; then put running means back and count. Every rank decides alike.

        Raises:
            NumericsError: Too many steps in a row.
        """
        if not self.skips or not self._sum(torch.tensor(float(bool(self._found)), device=self.args.device)):
            self.in_a_row = 0
            return False
        for buffer, value in self._buffers:
            buffer.copy_(value)
        everywhere: list[list[Found]] = [self._found]
        if self.args.world_size > 1:
            everywhere = [[] for _ in range(self.args.world_size)]
            dist.all_gather_object(everywhere, self._found)
        # Of several ranks that found the same gradient, the one that knows the term.
        found = min((f for row in everywhere for f in row), key=lambda f: f.term is None)
        self.history.add(self._event(found))
        self.in_a_row += 1
        if self.in_a_row >= SKIPS_IN_A_ROW:
            found.what += f", and {SKIPS_IN_A_ROW} steps in a row were skipped"
            raise found.error(f"{_HINT}; the checkpoints so far are kept.")
        return True

    def _event(self, found: Found) -> dict[str, Any]:
        here = self.history.path.parent if self.history.path is not None else Path.cwd()
        return {
            "event": "skip",
            "step": found.step,
            "reason": found.what,
            "term": found.term,
            "module": found.module,
            "samples": found.samples,
            "file": None if found.file is None else os.path.relpath(found.file, here),
        }

    def _keep(self, what: str, objective: Objective | None, batch: Mapping[str, Any]) -> None:
        """Save the batch; raise, or note what was found."""
        term, module = (objective.name, objective.module) if objective is not None else (None, None)
        found = Found(self._step, what, term, module, sample_ids(batch))
        rank = self.args.process_index
        name = f"step-{self._step}" + (f"-rank{rank}" if rank else "") + ".safetensors"
        path = save_batch(self.folder / name, batch, found)
        found.file = None if path is None else str(path)
        if not self.skips:
            skip = 'where the data are to blame, train.on_nonfinite "skip" passes over such steps'
            raise found.error(f"{_HINT}; {skip}. The checkpoints so far are kept.")
        self._found.append(found)

    def _blame(self, norm: float, terms: Terms) -> tuple[str, Objective | None, Mapping[str, Any]]:
        """Find the term and the micro-batch that give such a gradient, by asking each again."""
        named = [(n, p) for n, p in self.module.named_parameters() if p.grad is not None]
        names = [n for n, p in named if not own_share(p.grad).isfinite().all()]
        where = f'in {len(names)} parameters, the first "{names[0]}"' if names else "by its size alone"
        what = f"the norm of the gradient became {norm}, {where}"
        parameters = [p for _, p in named]
        batch = self._batches[-1]
        with torch.random.fork_rng():
            for one in self._batches:
                for batch, objective, total in terms(one):
                    grads = torch.autograd.grad(total, parameters, allow_unused=True) if total.requires_grad else ()
                    if not all(g is None or g.isfinite().all() for g in grads):
                        return f'{what}, through the term "{objective.name}"', objective, batch
        return what, None, batch
