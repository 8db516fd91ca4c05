"""PLD as an objective: what counts, shifts, and that a step may be split."""

import pytest
import torch

from potstill.errors import RecipeError
from potstill.losses import pld_loss
from potstill.objectives import PLDObjective
from potstill.objectives.base import Seen
from potstill.taps import Signal

torch.manual_seed(0)
ROWS_S, ROWS_T = torch.randn(2, 6, 4)
LABELS = torch.tensor([0, 3, -100, 1, 2, -100])


def seen(student, teacher, **batch):
    return Seen(batch, Signal({"logits": student}), Signal({"logits": teacher}))


def test_rows_without_a_label_do_not_count():
    objective = PLDObjective("rank", "logits", "labels", tau=2.0)
    kept = LABELS != -100
    total = objective.total(seen(ROWS_S, ROWS_T, labels=LABELS), None)
    torch.testing.assert_close(total, pld_loss(ROWS_S[kept], ROWS_T[kept], LABELS[kept], tau=2.0, reduction="sum"))
    assert objective.count({"labels": LABELS}) == 4


def test_a_mask_drops_further_rows():
    objective = PLDObjective("rank", "logits", "labels", mask="keep")
    batch = {"labels": LABELS, "keep": torch.tensor([1, 0, 1, 1, 1, 1])}
    kept = (LABELS != -100) & (batch["keep"] != 0)
    torch.testing.assert_close(
        objective.total(seen(ROWS_S, ROWS_T, **batch), None),
        pld_loss(ROWS_S[kept], ROWS_T[kept], LABELS[kept], reduction="sum"),
    )
    assert objective.count(batch) == 3


def test_tokens_are_shifted_where_the_collator_does_not():
    objective = PLDObjective("rank", "logits", "labels", shift=True, topk=3)
    student, teacher, labels = ROWS_S.view(2, 3, 4), ROWS_T.view(2, 3, 4), LABELS.view(2, 3)
    rows = [x[:, :-1].flatten(0, 1) for x in (student, teacher)]
    later = labels[:, 1:].flatten()
    kept = later != -100
    torch.testing.assert_close(
        objective.total(seen(student, teacher, labels=labels), None),
        pld_loss(*(x[kept] for x in rows), later[kept], topk=3, reduction="sum"),
    )
    assert objective.count({"labels": labels}) == kept.sum()


def test_halves_of_a_batch_add_up_to_the_batch():
    objective = PLDObjective("rank", "logits", "labels")
    whole = objective.total(seen(ROWS_S, ROWS_T, labels=LABELS), None)
    halves = [objective.total(seen(ROWS_S[i], ROWS_T[i], labels=LABELS[i]), None) for i in (slice(3), slice(3, 6))]
    torch.testing.assert_close(sum(halves), whole)
    assert not objective.batch_coupled


def test_a_micro_batch_without_labels_gives_zero_with_a_graph():
    objective = PLDObjective("rank", "logits", "labels")
    student = ROWS_S.clone().requires_grad_()
    total = objective.total(seen(student, ROWS_T, labels=torch.full((6,), -100)), None)
    total.backward()
    assert total == 0
    assert (student.grad == 0).all()


def test_labels_that_are_not_in_the_batch_are_named():
    with pytest.raises(RecipeError, match='no "classes"'):
        PLDObjective("rank", "logits", "classes").count({"labels": LABELS})
