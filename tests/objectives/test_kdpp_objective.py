"""KD++ as an objective: the survey of class means, the projection, the warm-up, and what does not fit."""

import pytest
import torch

from potstill.errors import InputError, RecipeError
from potstill.losses import class_means, kdpp_loss, nd_loss
from potstill.objectives import KDPPObjective, NDObjective
from potstill.objectives.base import Seen
from potstill.taps import Signal

torch.manual_seed(0)
N, C, D_S, D_T = 12, 3, 4, 6
LOGITS_S, LOGITS_T = torch.randn(2, N, C)
WIDE_S, NARROW_S, FEATURES_T = torch.randn(N, D_T), torch.randn(N, D_S), torch.randn(N, D_T)
LABELS = torch.arange(N) % C
LABELS[[4, 7]] = -100
KEPT = LABELS != -100


def seen(features=WIDE_S, rows=slice(None), epoch=0.0, labels=LABELS):
    student = Signal({"logits": LOGITS_S[rows]}, {"s": features[rows]})
    teacher = Signal({"logits": LOGITS_T[rows]}, {"t": FEATURES_T[rows]})
    return Seen({"labels": labels[rows]}, student, teacher, epoch=epoch)


def surveyed(objective, features=WIDE_S):
    one = seen(features)
    part = objective.build_part(one.student, one.teacher)
    for rows in (slice(5), slice(5, 9), slice(9, N)):
        batch = seen(features, rows)
        batch.student = None
        objective.look(batch, part)
    objective.finish(part)
    return part


def nd(**options):
    return NDObjective("nd", "s", "labels", teacher_tap="t", **options)


def kdpp(**options):
    return KDPPObjective("kdpp", "s", "labels", teacher_tap="t", **options)


def test_the_survey_leaves_the_means_of_labelled_rows_in_a_buffer():
    part = surveyed(nd())
    wanted, _ = class_means(FEATURES_T[KEPT], LABELS[KEPT], C)
    torch.testing.assert_close(part.means, wanted)
    assert dict(part.named_buffers())["means"] is part.means
    assert list(part.parameters()) == []
    assert nd().surveys


def test_the_feature_term_is_summed_over_rows_with_a_label():
    objective = nd()
    part = surveyed(objective)
    wanted = nd_loss(WIDE_S[KEPT], FEATURES_T[KEPT], part.means, LABELS[KEPT], reduction="sum")
    torch.testing.assert_close(objective.total(seen(), part), wanted)
    assert objective.count({"labels": LABELS}) == 10
    assert not objective.batch_coupled


def test_halves_of_a_batch_add_up_to_the_batch_without_a_projection():
    for objective in (nd(), kdpp()):
        part = surveyed(objective)
        halves = [objective.total(seen(rows=rows), part) for rows in (slice(6), slice(6, N))]
        torch.testing.assert_close(sum(halves), objective.total(seen(), part))


def test_a_narrower_student_gets_batch_norm_dropout_and_a_linear_map():
    objective = nd()
    part = surveyed(objective, NARROW_S)
    norm, dropout, linear = part.projector
    assert objective.batch_coupled
    assert (norm.weight == 1).all()
    assert (norm.bias == 0).all()
    assert dropout.p == 0.5
    assert linear.weight.shape == (D_T, D_S)
    assert (linear.bias == 0).all()
    part.train()
    total = objective.total(seen(NARROW_S), part)
    total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    part.eval()
    torch.testing.assert_close(
        objective.total(seen(NARROW_S), part),
        nd_loss(part(NARROW_S)[KEPT], FEATURES_T[KEPT], part.means, LABELS[KEPT], reduction="sum"),
    )


def test_a_pooled_feature_map_is_a_feature():
    objective = nd()
    flat, pooled = surveyed(objective), seen(WIDE_S[..., None, None])
    torch.testing.assert_close(objective.total(pooled, flat), objective.total(seen(), flat))
    with pytest.raises(RecipeError, match="no penultimate feature"):
        objective.total(seen(torch.randn(N, D_T, 2, 2)), flat)


def test_the_whole_is_the_loss_of_that_name_at_this_epoch():
    weights = {"ce_weight": 0.5, "kd_weight": 2.0, "nd_weight": 1.5, "temperature": 3.0, "kd_warmup_epochs": 4}
    objective = kdpp(**weights)
    part = surveyed(objective)
    for epoch in (0.0, 1.0, 9.0):
        given = (LOGITS_S[KEPT], LOGITS_T[KEPT], LABELS[KEPT], WIDE_S[KEPT], FEATURES_T[KEPT], part.means)
        wanted = kdpp_loss(*given, epoch=epoch, reduction="sum", **weights)
        torch.testing.assert_close(objective.total(seen(epoch=epoch), part), wanted)


def test_logits_come_from_the_feature_as_it_is():
    objective = kdpp(ce_weight=1.0, kd_weight=0.0, nd_weight=0.0)
    part = surveyed(objective, NARROW_S)
    part.train()
    wanted = torch.nn.functional.cross_entropy(LOGITS_S[KEPT], LABELS[KEPT], reduction="sum")
    torch.testing.assert_close(objective.total(seen(NARROW_S), part), wanted)


def test_a_micro_batch_without_labels_gives_zero_with_a_graph():
    for objective in (nd(), kdpp()):
        part = surveyed(objective, NARROW_S)
        total = objective.total(seen(NARROW_S, labels=torch.full((N,), -100)), part)
        total.backward()
        assert total == 0
        assert all(p.grad is not None and not p.grad.any() for p in part.parameters())


def test_a_class_that_the_survey_has_not_seen_is_refused_where_it_is_used():
    objective = nd()
    one = seen()
    part = objective.build_part(one.student, one.teacher)
    without = LABELS.masked_fill(LABELS == 2, -100)
    objective.look(seen(labels=without), part)
    objective.finish(part)
    assert torch.isfinite(objective.total(seen(labels=without), part))
    with pytest.raises(InputError, match="mean of a class in the batch is 0"):
        objective.total(seen(), part)
