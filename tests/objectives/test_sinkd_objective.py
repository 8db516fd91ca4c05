"""SinKD as an objective: rows and tokens that count, and what splitting a batch does."""

import torch

from potstill.losses import sinkhorn_kd_loss, sinkhorn_kd_token_loss
from potstill.objectives import SinkDObjective
from potstill.objectives.base import Seen
from potstill.taps import Signal

torch.manual_seed(0)
ROWS_S, ROWS_T = torch.randn(2, 6, 4)
LABELS = torch.tensor([0, 3, -100, 1, 2, -100])


def seen(student, teacher, **batch):
    return Seen(batch, Signal({"logits": student}), Signal({"logits": teacher}))


def test_the_cost_of_a_micro_batch_is_weighed_by_its_rows():
    objective = SinkDObjective(temperature=1.0, epsilon=0.3, n_iters=5)
    options = {"temperature": 1.0, "epsilon": 0.3, "n_iters": 5}
    total = objective.total(seen(ROWS_S, ROWS_T, labels=LABELS), None)
    torch.testing.assert_close(total, 6.0 * sinkhorn_kd_loss(ROWS_S, ROWS_T, **options).double(), check_dtype=False)
    assert objective.count({"labels": LABELS}) == 6


def test_rows_without_a_label_are_left_out_if_labels_are_named():
    objective = SinkDObjective(labels="labels", reduction="mean")
    kept = LABELS != -100
    total = objective.total(seen(ROWS_S, ROWS_T, labels=LABELS), None)
    wanted = 4 * sinkhorn_kd_loss(ROWS_S[kept], ROWS_T[kept], reduction="mean")
    torch.testing.assert_close(total, wanted, check_dtype=False)


def test_tokens_are_matched_in_groups():
    objective = SinkDObjective(labels="labels", group_size=2)
    student, teacher, labels = ROWS_S.view(2, 3, 4), ROWS_T.view(2, 3, 4), LABELS.view(2, 3)
    wanted = 4 * sinkhorn_kd_token_loss(student, teacher, labels != -100, group_size=2)
    torch.testing.assert_close(objective.total(seen(student, teacher, labels=labels), None), wanted, check_dtype=False)


def test_under_accumulation_it_is_the_mean_over_micro_batches():
    objective = SinkDObjective(reduction="mean")
    assert objective.batch_coupled
    parts = [slice(4), slice(4, 6)]
    totals = [objective.total(seen(ROWS_S[i], ROWS_T[i], labels=LABELS[i]), None) for i in parts]
    means = [sinkhorn_kd_loss(ROWS_S[i], ROWS_T[i], reduction="mean") for i in parts]
    torch.testing.assert_close(sum(totals) / 6, (4 * means[0] + 2 * means[1]) / 6, check_dtype=False)
    whole = objective.total(seen(ROWS_S, ROWS_T, labels=LABELS), None) / 6
    assert not torch.isclose(whole, sum(totals) / 6, rtol=1e-3)
