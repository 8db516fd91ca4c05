"""DDK's mixture: from which domains the next samples are drawn, renewed by how far the student lags in each."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from potstill.errors import InputError
from potstill.policies.domain_weights import init_domain_weights, update_domain_weights
from potstill.policies.generator import PolicyGenerator

Side = Literal["student", "teacher"]


class DomainMixturePolicy:
    """Draws the training samples of every interval, more of those domains in which the student is far behind.

    For corpora of several domains of unequal difficulty. Where the student lags alike in all, it draws them evenly,
    small domains as often as large ones, which repeats their samples: compare with plain sampling. It knows no model:
    ``eval_fn`` measures.

    In a loop of your own::

        policy = DomainMixturePolicy({"prose": rows_a, "code": rows_b}, measure, interval=1000)
        for step in range(1, steps + 1):
            if (step - 1) % 1000 == 0:
                pool = iter(policy.next_pool(1000 * batch_size))
            train_on([next(pool) for _ in range(batch_size)])
            policy.on_step_end(step)

    Args:
        domains: The samples (or their numbers) of every domain, by its name or in a list.
        eval_fn: ``eval_fn("student")`` and ``eval_fn("teacher")`` return a perplexity for every domain in their order,
            on texts that are not trained on. The teacher is asked once.
        interval: Steps between two updates of the weights, K.
        alpha: Share of the ratios in the weights, the rest is spread evenly.
        seed: Seed of the draws and of every domain's order, 0 or more; the global ones are never touched.

    Raises:
        InputError: no domain, or an empty one; an option out of range; perplexities that are none.

    Attributes:
        names: Names of the domains.
        weights: Probability of each; None before the first pool, which is drawn evenly from all samples.
        student_ppl: What was measured last.
        teacher_ppl: What was measured once.

    Source:
        Liu et al., "DDK", NeurIPS 2024, algorithm 1. Samples are drawn one by one, first the domain, then the next of
        that domain in an order of its own, begun anew in another order when it is through. Such a pool is in no order
        already, and is not shuffled once more.
    """

    def __init__(
        self,
        domains: Mapping[str, Sequence[Any]] | Sequence[Sequence[Any]],
        eval_fn: Callable[[Side], Sequence[float]],
        interval: int = 1000,
        alpha: float = 0.5,
        seed: int = 0,
    ):
        rows = domains if isinstance(domains, Mapping) else {str(i): row for i, row in enumerate(domains)}
        if not rows:
            raise InputError("there is no domain", where="domains", expected="at least one")
        for name, row in rows.items():
            if not len(row):
                raise InputError("has no sample", where=f"domains.{name}", expected="at least one")
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise InputError("does not fit", where="interval", expected="a whole number, 1 or more", got=interval)
        if not 0 <= alpha <= 1:
            raise InputError("does not fit", where="alpha", expected="a number in [0, 1]", got=alpha)
        self.names, self.eval_fn, self.interval, self.alpha = list(rows), eval_fn, interval, alpha
        self._draws = PolicyGenerator(seed)
        self._domains = [_Domain(row, operator.index(seed), i) for i, row in enumerate(rows.values())]
        self.weights: list[float] | None = None
        self.student_ppl: list[float] | None = None
        self.teacher_ppl: list[float] | None = None
        self._has_drawn = False

    def next_pool(self, n: int) -> list[Any]:
        """Return the next ``n`` samples to train on.

        The first pool comes evenly from the whole corpus, so from large domains more; the weights to begin with are
        measured before it, and are what the first update starts from.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise InputError("does not fit", where="n", expected="a whole number, 0 or more", got=n)
        if self.weights is None:
            self._measure()
        chances = self.weights
        if not self._has_drawn:
            sizes = [len(domain.samples) for domain in self._domains]
            chances = [size / sum(sizes) for size in sizes]
        self._has_drawn = True
        edges = np.cumsum(chances)
        places = np.searchsorted(edges, np.array(self._draws.uniform(n)) * edges[-1], side="right")
        return [self._domains[i].next() for i in places.tolist()]

    def on_step_end(self, step: int) -> bool:
        """Renew the weights if an interval ends with this step, counted from 1; return whether it did."""
        if step < 1 or step % self.interval:
            return False
        self._measure()
        return True

    def _measure(self) -> None:
        if self.teacher_ppl is None:
            self.teacher_ppl = [float(x) for x in self.eval_fn("teacher")]
        self.student_ppl = [float(x) for x in self.eval_fn("student")]
        for side, row in (("student", self.student_ppl), ("teacher", self.teacher_ppl)):
            if len(row) != len(self.names):
                raise InputError(
                    f"the {side}'s perplexities do not fit",
                    where="eval_fn",
                    expected=f"{len(self.names)}, one per domain",
                    got=len(row),
                )
        ppl = self.student_ppl, self.teacher_ppl
        if self.weights is None:
            self.weights = init_domain_weights(*ppl).tolist()
        else:
            self.weights = update_domain_weights(self.weights, *ppl, self.alpha).tolist()

    def state_dict(self) -> dict[str, Any]:
        """Return weights, what was measured, where every domain stands and the generator, as plain data."""
        return {
            "names": list(self.names),
            "weights": self.weights,
            "student_ppl": self.student_ppl,
            "teacher_ppl": self.teacher_ppl,
            "has_drawn": self._has_drawn,
            "domains": [[domain.round, domain.place] for domain in self._domains],
            "draws": self._draws.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            InputError: if it is not one that ``state_dict`` of these domains wrote.
        """
        if not isinstance(state, Mapping) or state.keys() != self.state_dict().keys():
            raise InputError("not the state of a domain mixture", where="policy")
        if state["names"] != self.names:
            raise InputError("belongs to other domains", where="policy", expected=self.names, got=state["names"])
        for domain, (rounds, place) in zip(self._domains, state["domains"]):
            domain.go_to(rounds, place)
        self.weights, self.student_ppl, self.teacher_ppl = (
            None if state[key] is None else list(state[key]) for key in ("weights", "student_ppl", "teacher_ppl")
        )
        self._has_drawn = bool(state["has_drawn"])
        self._draws.load_state_dict(state["draws"])


class _Domain:
    """The samples of a domain, round after round, each in an order that is a function of seed, domain and round."""

    def __init__(self, samples: Sequence[Any], seed: int, number: int):
        self.samples, self._seed, self._number = samples, seed, number
        self.go_to(0, 0)

    def go_to(self, rounds: int, place: int) -> None:
        if not 0 <= place <= len(self.samples):
            raise InputError(
                "is no place in the domain", where="policy", expected=f"0 to {len(self.samples)}", got=place
            )
        self.round, self.place = rounds, place
        # Raw words, as everywhere in policies: numpy promises the same ones for ever.
        words = np.random.PCG64((self._seed, self._number, rounds)).random_raw(len(self.samples))
        self._order = np.argsort(words, kind="stable")

    def next(self) -> Any:
        if self.place == len(self.samples):
            self.go_to(self.round + 1, 0)
        self.place += 1
        return self.samples[int(self._order[self.place - 1])]
