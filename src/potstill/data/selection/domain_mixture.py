"""The selection "ddk": the next interval's texts come from the domains in which the student lags its teacher."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.data.selection.base import SELECTIONS, Chosen, Pool, SelectionPolicy
from potstill.errors import InputError, RecipeError
from potstill.policies import DomainMixturePolicy

IGNORED = -100
LARGEST_LOSS = 20.0
"""Nats a token (perplexity 4.9e8) at which a cross-entropy is cut off before its exponential is taken."""


@SELECTIONS.register("ddk")
class DDKSelection(SelectionPolicy):
    """Intervals of texts drawn by domain, the weights of which follow the ratio of perplexities: DDK.

    An epoch is ``interval`` steps long. Before the first, texts come evenly from the whole training set; before every
    further one, student and teacher are compared on held-out texts of each domain (the teacher once), and the texts are
    drawn by ``potstill.policies.DomainMixturePolicy``. Small domains are repeated. For causal language models. Where
    the student lags alike in all domains it does nothing that drawing them evenly does not.

    Args:
        interval: Steps between two updates of the weights.
        alpha: Share of the ratios in the weights, the rest is spread evenly: no weight is below (1 - alpha) / N.
        samples: Held-out texts of each domain, the first ones.
        heldout: Split they come from; it must not be one that is reported at the end.
        labels: Batch key of the tokens to predict, ``[B, L]``, not shifted; -100 = not counted.
        teacher_labels: The teacher's, if its tokenizer is another; then ``num_bytes`` is needed.
        num_bytes: Batch key of the number of bytes that a row's labels stand for, ``[B]``: perplexities are then per
            byte, which models of different tokenizers have in common. None = per token.
        domain: Batch key of the domain's number.
        on: Logits of the student.
        teacher_on: Logits of the teacher; None = as ``on``.
        domains: Names of the domains by their number; None = the numbers.
        seed: Seed of the draws.

    Raises:
        RecipeError: An option out of range.
        InputError: A domain without training or held-out texts; the batch lacks a key.

    Source:
        Liu et al., "DDK: Distilling Domain Knowledge for Efficient Large Language Models", NeurIPS 2024, arXiv
        2407.16154, algorithm 1.
    """

    def __init__(
        self,
        *,
        interval: int = 1000,
        alpha: float = 0.5,
        samples: int = 500,
        heldout: str = "validation",
        labels: str = "labels",
        teacher_labels: str | None = None,
        num_bytes: str | None = None,
        domain: str = "domain",
        on: str = "logits",
        teacher_on: str | None = None,
        domains: Sequence[str] | None = None,
        seed: int = 0,
    ):
        for name, number in (("interval", interval), ("samples", samples)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise RecipeError("does not fit", where=name, expected="a whole number, 1 or more", got=number)
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
            raise RecipeError("does not fit", where="alpha", expected="a number in [0, 1]", got=alpha)
        if heldout == "train":
            raise RecipeError("is what is trained on", where="heldout", expected="another split")
        if teacher_labels is not None and num_bytes is None:
            raise RecipeError(
                "perplexities per token of different tokenizers are not comparable",
                where="teacher_labels",
                hint="Give num_bytes too.",
            )
        self.interval, self.alpha, self.samples, self.heldout = interval, alpha, samples, heldout
        self.labels, self.teacher_labels, self.num_bytes, self.domain = labels, teacher_labels, num_bytes, domain
        self.on, self.teacher_on, self.domains, self.seed = on, teacher_on, domains, seed
        self.mixture: DomainMixturePolicy | None = None
        self._heldout_rows: Tensor | None = None
        self._pool: Pool | None = None

    def length(self, size: int) -> int:
        """Return how many samples an interval has."""
        return self.interval * self.rows_per_step

    def choose(self, pool: Pool, epoch: int) -> Chosen:
        """Renew the weights, unless it is the first interval, and draw the texts of the next."""
        self._pool = pool
        if self.mixture is None:
            self._begin(pool)
        else:
            self.mixture.on_step_end(epoch * self.interval)
        order = torch.tensor(self.mixture.next_pool(self.length(pool.size)), dtype=torch.int64)
        self._pool = None
        return Chosen(order.unique(), facts=self._facts(), order=order)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the mixture."""
        return {"mixture": None if self.mixture is None else self.mixture.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what ``state_dict`` returned, once the first interval has been chosen."""
        super().load_state_dict(state)
        self.mixture.load_state_dict(state["mixture"])

    def _begin(self, pool: Pool) -> None:
        of_rows = pool.batch(self.domain)
        names = self._names(int(of_rows.max()) + 1)
        self.mixture = DomainMixturePolicy(
            {name: (of_rows == i).nonzero()[:, 0].tolist() for i, name in enumerate(names)},
            self._perplexities,
            self.interval,
            self.alpha,
            self.seed,
        )
        heldout = pool.heldout.batch(self.domain)
        rows = [(heldout == i).nonzero()[: self.samples, 0] for i in range(len(names))]
        for name, row in zip(names, rows):
            if not len(row):
                raise InputError(
                    f'the split "{self.heldout}" has no text of the domain "{name}"', where="selection.heldout"
                )
        self._heldout_rows = torch.cat(rows)

    def _names(self, number: int) -> list[str]:
        if self.domains is None:
            return [str(i) for i in range(number)]
        if number > len(self.domains):
            raise InputError(
                "a text is of a domain without a name",
                where="selection.domain",
                expected=f"0 to {len(self.domains) - 1}",
                got=number - 1,
            )
        return list(self.domains)

    def _perplexities(self, side: str) -> list[float]:
        """Measure a model on the held-out texts: exp of the mean cross-entropy of every domain."""

        def read(logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
            key = self.teacher_labels if side == "teacher" and self.teacher_labels else self.labels
            for needed in filter(None, (key, self.num_bytes)):
                if needed not in batch:
                    raise InputError(f'the batch has no "{needed}"', where="selection")
            if "teacher_labels" in batch and self.teacher_labels is None:
                raise InputError(
                    "the teacher has a tokenizer of its own, and perplexities per token are not comparable",
                    where="selection",
                    hint='Set teacher_labels: "teacher_labels" and num_bytes.',
                )
            labels = batch[key][:, 1:]
            counts = labels != IGNORED
            loss = torch.zeros(labels.shape, dtype=torch.float64, device=logits.device)
            loss[counts] = F.cross_entropy(logits[:, :-1][counts].float(), labels[counts], reduction="none").double()
            units = counts.sum(1) if self.num_bytes is None else batch[self.num_bytes]
            return torch.stack([batch[self.domain].double(), loss.sum(1), units.double()], dim=1)

        rows = self._pool.heldout.measure(side, read, self._heldout_rows)
        found = []
        for i, name in enumerate(self.mixture.names):
            own = rows[rows[:, 0] == i]
            if not own[:, 2].sum() > 0:
                raise InputError(f'no held-out text of the domain "{name}" has a label', where="selection.heldout")
            loss = (own[:, 1].sum() / own[:, 2].sum()).item()
            if not loss <= LARGEST_LOSS:
                warnings.warn(
                    f'ddk: the {side}\'s cross-entropy on the domain "{name}" is {loss:.1f} nats; '
                    f"it counts as {LARGEST_LOSS:g}",
                    stacklevel=2,
                )
                loss = LARGEST_LOSS
            found.append(math.exp(loss))
        return found

    def _facts(self) -> dict[str, float]:
        mixture, facts = self.mixture, {}
        for name, weight, student, teacher in zip(
            mixture.names, mixture.weights, mixture.student_ppl, mixture.teacher_ppl
        ):
            facts |= {f"weight.{name}": weight, f"student_ppl.{name}": student, f"teacher_ppl.{name}": teacher}
        return facts
