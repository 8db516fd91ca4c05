"""Active distillation in a run: from time to time labels of a few samples are bought from the teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from potstill.data.selection.base import SELECTIONS, Chosen, Pool, SelectionPolicy
from potstill.data.selection.robust_active import RobustActiveSelector
from potstill.data.selection.selectors import (
    EntropySelector,
    KCenterSelector,
    MarginSelector,
    RandomSelector,
    Selector,
)
from potstill.errors import RecipeError, suggest

SELECTORS: dict[str, type[Selector]] = {
    kind.name: kind for kind in (EntropySelector, KCenterSelector, MarginSelector, RandomSelector, RobustActiveSelector)
}
UNLABELLED = -100


@SELECTIONS.register("active_distill")
class ActiveDistillSelection(SelectionPolicy):
    """Epochs of the labelled samples and of those whose soft labels were bought so far.

    The first ``epochs_per_round`` epochs have labelled samples alone. Then, before every ``epochs_per_round``-th epoch,
    the student scores the unlabelled ones, the selector names ``budget`` of them, and the teacher is asked about
    exactly these, until ``rounds`` are over. Soft labels are kept: the teacher is never asked twice, and does not run
    in training. Every batch has ``soft_labels`` ``[B, C]`` and ``is_bought`` ``[B]``, for the loss "bought_labels".

    The student goes on from its current weights in every round. To start from scratch in each, use the selectors in a
    loop of your own.

    Args:
        selector: robust_active, margin, entropy, k_center or random.
        budget: Labels bought in a round.
        rounds: How often.
        epochs_per_round: Epochs between two rounds, and before the first.
        epoch_samples: Length of an epoch, in samples; None = as many as the training set has.
        gain: For robust_active: margin or entropy.
        teacher_error: Share of wrong labels that the teacher is taken to give, 0 to 1; "labelled" = its error on the
            labelled samples, about which it is then asked as well.
        labels: Batch key of the labels, -100 = unlabelled.
        truth: Batch key of true classes, to tell in the history how many bought labels were wrong; None = not told.
        on: Logits of the student.
        teacher_on: Logits of the teacher; None = as ``on``.
        seed: Seed of the selector.

    Raises:
        RecipeError: an option out of range.

    Source:
        "Robust Active Distillation", ICLR 2023, arXiv 2210.01213.
    """

    keys = ("soft_labels", "is_bought")

    def __init__(
        self,
        *,
        selector: str = "robust_active",
        budget: int = 40,
        rounds: int = 5,
        epochs_per_round: int = 1,
        epoch_samples: int | None = None,
        gain: str = "margin",
        teacher_error: float | str = "labelled",
        labels: str = "labels",
        truth: str | None = None,
        on: str = "logits",
        teacher_on: str | None = None,
        seed: int = 0,
    ):
        if selector not in SELECTORS:
            raise RecipeError(f'unknown selector "{selector}"', where="selector", hint=suggest(selector, SELECTORS))
        numbers = {"budget": budget, "rounds": rounds, "epochs_per_round": epochs_per_round}
        if epoch_samples is not None:
            numbers["epoch_samples"] = epoch_samples
        for name, number in numbers.items():
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise RecipeError("does not fit", where=name, expected="a whole number, 1 or more", got=number)
        if teacher_error != "labelled" and not (
            isinstance(teacher_error, int | float) and not isinstance(teacher_error, bool) and 0 <= teacher_error <= 1
        ):
            raise RecipeError(
                "does not fit", where="teacher_error", expected='0 to 1, or "labelled"', got=teacher_error
            )
        options = {"gain": gain} if selector == RobustActiveSelector.name else {}
        self.selector = SELECTORS[selector](seed=seed, **options)
        self.budget, self.rounds, self.epochs_per_round = budget, rounds, epochs_per_round
        self.epoch_samples, self.teacher_error = epoch_samples, teacher_error
        self.labels, self.truth, self.on, self.teacher_on = labels, truth, on, teacher_on
        self._bought: list[int] = []
        self._soft: list[list[float]] = []
        self._error: float | None = None if teacher_error == "labelled" else float(teacher_error)
        self._asked = 0

    def length(self, size: int) -> int:
        """Return how many samples an epoch has."""
        return self.epoch_samples or size

    def choose(self, pool: Pool, epoch: int) -> Chosen:
        """Buy labels if it is time, and return the labelled and the bought samples."""
        labels = pool.batch(self.labels)
        is_labelled = labels != UNLABELLED
        labelled, free = is_labelled.nonzero().squeeze(1), (~is_labelled).nonzero().squeeze(1)
        if len(labelled) == 0:
            raise RecipeError("no sample has a label to begin with", where="selection", hint="Set data.labelled.")
        if len(free) < self.budget * self.rounds:
            raise RecipeError(
                "more labels are to be bought than are missing",
                where="selection.budget",
                expected=f"budget x rounds of at most {len(free)}",
                got=self.budget * self.rounds,
            )
        rounds_done = len(self._bought) // self.budget
        if epoch and epoch % self.epochs_per_round == 0 and rounds_done < self.rounds:
            self._buy(pool, labels, labelled, free)
        bought = torch.tensor(self._bought, dtype=torch.int64)
        soft = torch.tensor(self._soft, dtype=torch.float32)
        classes = soft.shape[1] if self._soft else pool.student().shape[-1]
        batch = {
            "soft_labels": torch.cat([torch.zeros(len(labelled), classes), soft.view(-1, classes)]),
            "is_bought": torch.arange(len(labelled) + len(bought)) >= len(labelled),
        }
        return Chosen(torch.cat([labelled, bought]), batch, self._facts(pool))

    def state_dict(self) -> dict[str, Any]:
        """Return the bought labels, what is known of the teacher, and the state of the selector."""
        return {
            "bought": list(self._bought),
            "soft": [list(row) for row in self._soft],
            "error": self._error,
            "asked": self._asked,
            "selector": self.selector.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what ``state_dict`` returned."""
        super().load_state_dict(state)
        self.selector.load_state_dict(state["selector"])
        self._bought, self._soft = list(state["bought"]), [list(row) for row in state["soft"]]
        self._error, self._asked = state["error"], state["asked"]

    def _buy(self, pool: Pool, labels: Tensor, labelled: Tensor, free: Tensor) -> None:
        if self._error is None:
            answers = pool.teacher(labelled).argmax(-1)
            self._error = (answers != labels[labelled]).double().mean().item()
            self._asked += len(labelled)
        probs = pool.student()[free].double().softmax(-1)
        chosen = free[self.selector.select(probs, self.budget, teacher_error=self._error)]
        self._soft += pool.teacher(chosen).double().softmax(-1).tolist()
        self._bought += chosen.tolist()
        self._asked += len(chosen)

    def _facts(self, pool: Pool) -> dict[str, float]:
        facts = {"bought": len(self._bought), "asked": self._asked}
        if self._error is not None:
            facts["teacher_error"] = self._error
        if self.truth is not None and self._bought:
            true = pool.batch(self.truth)[torch.tensor(self._bought)]
            wrong = torch.tensor(self._soft).argmax(-1) != true
            facts["wrong"] = wrong.double().mean().item()
        return facts
