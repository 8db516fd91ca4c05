"""TRG as an objective: grids of both models, the three terms, draws, schedule, and what splitting a batch does."""

import pytest
import torch

from potstill.errors import RecipeError, ShapeError
from potstill.losses import (
    feature_map_to_tokens,
    sample_tokens,
    trg_global_loss,
    trg_inner_loss,
    trg_local_loss,
    trg_temperature,
)
from potstill.objectives import TRGObjective
from potstill.objectives.base import Seen
from potstill.taps import Signal

torch.manual_seed(0)
B = 5
MAP_S, MAP_T = torch.randn(B, 3, 4, 4), torch.randn(B, 3, 4, 4)
TOKENS_T = torch.randn(B, 17, 6)  # a class token and a grid of 4 x 4
BATCH = {"labels": torch.tensor([0, -100, 1, 2, -100])}


def seen(student=MAP_S, teacher=MAP_T, progress=0.0, batch=BATCH):
    return Seen(batch, Signal({}, {"s": student}), Signal({}, {"t": teacher}), progress=progress)


def make(**options):
    return TRGObjective("trg", "s", teacher_tap="t", **options)


def test_all_rows_count_with_or_without_a_label():
    assert make().count(BATCH) == B
    assert make().batch_coupled


def test_it_is_the_weighted_sum_of_the_three_losses_on_all_tokens():
    options = {"inner_weight": 7.0, "local_weight": 2.0, "global_weight": 3.0}
    objective = make(r=None, k=4, tau_start=0.6, tau_end=0.2, **options)
    student, teacher = (feature_map_to_tokens(x, 4) for x in (MAP_S, MAP_T))
    flat = [x.flatten(0, 1) for x in (student, teacher)]
    for progress in (0.0, 0.5, 0.9):
        tau = trg_temperature(progress, 0.6, 0.2)
        wanted = 7 * trg_inner_loss(student, teacher) + 2 * trg_local_loss(*flat, 4)
        wanted = B * (wanted + 3 * trg_global_loss(*flat, None, tau))
        torch.testing.assert_close(objective.total(seen(progress=progress), None), wanted, check_dtype=False)


def test_the_weight_of_the_inner_loss_grows_with_the_tokens():
    only = {"local_weight": 0.0, "global_weight": 0.0}
    student, teacher = (feature_map_to_tokens(x, 4) for x in (MAP_S, MAP_T))
    wanted = B * 100 * 16 / 49 * trg_inner_loss(student, teacher)
    torch.testing.assert_close(make(**only).total(seen(), None), wanted, check_dtype=False)


def test_the_finer_grid_is_averaged_to_the_coarser_and_class_tokens_are_left_out():
    objective = make(teacher_skip=1, local_weight=0.0, global_weight=0.0, inner_weight=1.0)
    small = torch.randn(B, 3, 2, 2)
    teacher = feature_map_to_tokens(TOKENS_T[:, 1:].mT.unflatten(2, (4, 4)), 2)
    wanted = B * trg_inner_loss(feature_map_to_tokens(small, 2), teacher)
    torch.testing.assert_close(objective.total(seen(small, TOKENS_T), None), wanted, check_dtype=False)
    torch.testing.assert_close(
        make(grid=2, teacher_skip=1, local_weight=0.0, global_weight=0.0, inner_weight=1.0).total(
            seen(MAP_S, TOKENS_T), None
        ),
        B * trg_inner_loss(feature_map_to_tokens(MAP_S, 2), teacher),
        check_dtype=False,
    )


def test_a_projection_is_trained_where_widths_differ():
    objective = make(teacher_skip=1, inner_weight=0.0, local_weight=0.0, r=None)
    part = objective.build_part(Signal({}, {"s": MAP_S}), Signal({}, {"t": TOKENS_T}))
    assert part.weight.shape == (6, 3)
    assert part.bias is None
    objective.total(seen(MAP_S, TOKENS_T), part).backward()
    assert part.weight.grad.abs().sum() > 0
    assert make().build_part(Signal({}, {"s": MAP_S}), Signal({}, {"t": MAP_T})) is None


def test_draws_follow_the_progress_and_the_seed_and_nothing_else():
    torch.manual_seed(1)
    first = make(r=3, k=2).total(seen(progress=0.25), None)
    torch.manual_seed(2)
    assert torch.equal(make(r=3, k=2).total(seen(progress=0.25), None), first)
    fixed = {"tau_start": 0.3, "tau_end": 0.3, "r": 3, "k": 2}
    values = {make(seed=s, **fixed).total(seen(progress=p), None).item() for s in (0, 1) for p in (0.0, 0.01)}
    assert len(values) == 4


def test_the_places_that_are_drawn_are_those_of_the_sampler():
    objective = make(r=3, k=2, inner_weight=0.0, global_weight=0.0)
    student, teacher = (feature_map_to_tokens(x, 4) for x in (MAP_S, MAP_T))
    s, t, _ = sample_tokens(student, teacher, 3, objective._generator(0.5))
    torch.testing.assert_close(
        objective.total(seen(progress=0.5), None), B * trg_local_loss(s, t, 2), check_dtype=False
    )


def test_under_accumulation_it_is_the_mean_over_micro_batches():
    objective = make(r=None, k=4)
    cut = [slice(3), slice(3, 5)]
    batches = [{"labels": BATCH["labels"][i]} for i in cut]
    totals = [objective.total(seen(MAP_S[i], MAP_T[i], batch=b), None) for i, b in zip(cut, batches)]
    means = [total / objective.count(b) for total, b in zip(totals, batches)]
    torch.testing.assert_close(sum(totals) / B, (3 * means[0] + 2 * means[1]) / B)
    assert not torch.isclose(objective.total(seen(), None) / B, sum(totals) / B, rtol=1e-3)


def test_layers_that_hold_no_grid_are_refused():
    with pytest.raises(RecipeError, match=r"16 tokens|17 tokens"):
        make().total(seen(MAP_S, TOKENS_T), None)
    with pytest.raises(RecipeError, match="neither a feature map nor tokens"):
        make().total(seen(torch.randn(B, 3)), None)
    with pytest.raises(ShapeError, match="H, W >= 5"):
        make(grid=5).total(seen(), None)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"local_weight": -1.0}, "local_weight"),
        ({"global_weight": float("nan")}, "global_weight"),
        ({"inner_weight": float("inf")}, "inner_weight"),
        ({"seed": -1}, "seed"),
        ({"skip": -1}, "skip"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(options, field):
    with pytest.raises(RecipeError, match=field):
        make(**options)
