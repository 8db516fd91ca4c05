import pytest
import torch

from potstill.errors import RecipeError
from potstill.objectives import OBJECTIVES, BoughtLabelsObjective, Seen
from potstill.taps import Signal


def seen(soft, is_bought, logits):
    return Seen({"soft_labels": soft, "is_bought": is_bought}, Signal({"logits": logits}))


def test_rows_that_were_bought_are_compared_and_no_others():
    objective = BoughtLabelsObjective("bought")
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    soft = torch.tensor([[0.2, 0.3, 0.5], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    given = seen(soft, torch.tensor([True, False, True, False]), logits)
    expected = sum((soft[i] * (soft[i].clamp_min(1e-30).log() - logits[i].log_softmax(-1))).sum() for i in (0, 2))
    total = objective.total(given, None)
    torch.testing.assert_close(total, expected)
    assert objective.count(given.batch) == 2
    total.backward()
    assert (logits.grad[[1, 3]] == 0).all()
    assert torch.isfinite(logits.grad).all()


def test_a_batch_without_bought_rows_gives_zero_with_a_graph():
    objective, logits = BoughtLabelsObjective("bought"), torch.randn(2, 3, requires_grad=True)
    given = seen(torch.zeros(2, 3), torch.zeros(2, dtype=torch.bool), logits)
    total = objective.total(given, None)
    total.backward()
    assert total == 0
    assert objective.count(given.batch) == 0


def test_sums_over_parts_are_the_sum_over_the_whole():
    objective, logits = BoughtLabelsObjective("bought"), torch.randn(6, 3)
    soft, is_bought = torch.rand(6, 3).softmax(-1), torch.arange(6) % 3 != 0
    parts = [objective.total(seen(soft[s], is_bought[s], logits[s]), None) for s in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(objective.total(seen(soft, is_bought, logits), None), sum(parts))


def test_it_asks_no_teacher_and_says_what_it_needs():
    objective = BoughtLabelsObjective("bought")
    assert not objective.reads_teacher
    assert OBJECTIVES.get("bought_labels") is BoughtLabelsObjective
    with pytest.raises(RecipeError, match=r'"soft_labels".*active_distill'):
        objective.count({"labels": torch.zeros(2)})
