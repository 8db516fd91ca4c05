"""The mathematics of robust active distillation: the game, its solution, and drawing without replacement."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.data.selection import (
    entropy_gains,
    inclusion_probabilities,
    margin_gains,
    rad_distribution,
    systematic_sample,
)
from potstill.errors import InputError, ShapeError

F64 = torch.float64
few = settings(max_examples=30, deadline=None)


def gains_of(seed, n):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=F64) * 0.99 + 0.01


def worst_case(probs, gains, m):
    """The gain that is left if the m samples that bring most are spoilt."""
    return (probs * gains).sort().values[: len(gains) - m].sum().item()


@pytest.mark.parametrize(
    ("m", "probs", "k", "value"), [(0, (1, 0, 0), 1, 1), (1, (1 / 3, 2 / 3, 0), 2, 1 / 3)], ids=["m=0", "m=1"]
)
def test_hand_values_of_three_gains(m, probs, k, value):
    result = rad_distribution(torch.tensor([1, 0.5, 0.25]), m)
    torch.testing.assert_close(result.probs, torch.tensor(probs, dtype=F64))
    assert result.k_star == k
    assert result.value == pytest.approx(value, abs=1e-15)


def test_one_sample_and_a_teacher_without_errors_is_legal():
    result = rad_distribution(torch.tensor([0.3]), 0)
    assert (result.probs.tolist(), result.k_star) == ([1.0], 1)
    assert systematic_sample(inclusion_probabilities(result.probs, 1), 0.5).tolist() == [0]


@given(seed=st.integers(0, 10**6), n=st.integers(1, 7), data=st.data())
@few
def test_no_distribution_does_better_against_any_choice_of_the_adversary(seed, n, data):
    # A mixed choice of the adversary that spoils sample i with chance z_i bounds every distribution from above by
    # max g_i (1 - z_i); one whose bound is our value proves that ours is the optimum.
    m = data.draw(st.integers(0, n - 1))
    gains = gains_of(seed, n)
    result = rad_distribution(gains, m)
    spoilt = (1 - result.value / gains).clamp_min(0)
    assert (spoilt <= 1).all()
    assert spoilt.sum().item() <= m + 1e-9  # so that such a mixture of sets of m samples exists
    assert (gains * (1 - spoilt)).max().item() <= result.value + 1e-9
    assert worst_case(result.probs, gains, m) == pytest.approx(result.value, abs=1e-12)


def test_value_and_distribution_equal_the_linear_programme():
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is no dependency; the proof above needs none")
    for seed, m in itertools.product(range(5), range(4)):
        gains = gains_of(seed, 5)
        # max v  so that  v <= sum of p g outside of I, for all sets I of m
        rows = []
        for spoilt in itertools.combinations(range(5), m):
            rows.append([-float(g) * (i not in spoilt) for i, g in enumerate(gains)] + [1.0])
        plan = optimize.linprog(
            [0] * 5 + [-1], rows, [0] * len(rows), [[1] * 5 + [0]], [1], [(0, None)] * 5 + [(None, None)]
        )
        result = rad_distribution(gains, m)
        assert result.value == pytest.approx(-plan.fun, abs=1e-9)
        # Random gains have no ties, so the optimum is unique.
        torch.testing.assert_close(result.probs, torch.tensor(plan.x[:5], dtype=F64), atol=1e-8, rtol=0)


@pytest.mark.parametrize("g", [1.0, 0.3, 0.07])
@pytest.mark.parametrize("m", [1, 5, 9])
def test_equal_gains_are_drawn_alike_if_any_label_may_be_wrong(g, m):
    result = rad_distribution(torch.full((10,), g), m)
    assert result.k_star == 10
    torch.testing.assert_close(result.probs, torch.full((10,), 0.1, dtype=F64))


@pytest.mark.parametrize("g", [1.0, 0.3, 0.07])
def test_equal_supports_give_way_to_the_smallest(g):
    assert rad_distribution(torch.full((10,), g), 0).k_star == 1
    assert rad_distribution(torch.full((10,), g), 0, min_support=4).k_star == 4


def test_all_but_one_wrong_spreads_over_the_whole_pool():
    assert rad_distribution(gains_of(3, 20), 19).k_star == 20


def test_a_constant_factor_of_the_gains_scales_the_value_alone():
    gains = gains_of(0, 30)
    plain = rad_distribution(gains, 6)
    for factor in (0.25, 3.7, 1e-200):
        scaled = rad_distribution(gains * factor, 6)
        torch.testing.assert_close(scaled.probs, plain.probs)
        assert scaled.k_star == plain.k_star
        assert scaled.value == pytest.approx(factor * plain.value, rel=1e-12)


@given(seed=st.integers(0, 10**6), n=st.integers(2, 40))
@few
def test_every_drawn_sample_brings_the_same_and_more_errors_widen_the_support(seed, n):
    gains, sizes = gains_of(seed, n), []
    for m in range(n):
        result = rad_distribution(gains, m)
        sizes.append(result.k_star)
        brought = (result.probs * gains)[result.probs > 0]
        assert len(brought) == result.k_star
        torch.testing.assert_close(brought, brought[:1].expand_as(brought))
        assert result.probs.sum().item() == pytest.approx(1, abs=1e-12)
    assert sizes == sorted(sizes)


def test_the_least_support_is_kept():
    gains = gains_of(1, 12)
    assert rad_distribution(gains, 0).k_star == 1
    result = rad_distribution(gains, 0, min_support=5)
    assert result.k_star == 5
    assert set(result.probs.nonzero().squeeze(1).tolist()) == set(gains.topk(5).indices.tolist())


def test_permuting_the_pool_permutes_the_distribution():
    gains = gains_of(2, 25)
    order = torch.randperm(25, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rad_distribution(gains[order], 7).probs, rad_distribution(gains, 7).probs[order])


def test_hand_values_of_inclusion_and_systematic_sampling():
    probs = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.06, 0.04], dtype=F64)
    inclusion = inclusion_probabilities(probs, 3)
    torch.testing.assert_close(inclusion, torch.tensor([1, 0.8, 0.4, 0.4, 0.24, 0.16], dtype=F64))
    assert systematic_sample(inclusion, 0.37).tolist() == [0, 1, 3]


@given(seed=st.integers(0, 10**6), n=st.integers(1, 30), data=st.data())
@few
def test_chances_lie_between_0_and_1_and_sum_to_the_budget(seed, n, data):
    budget = data.draw(st.integers(1, n))
    sharpness = data.draw(st.sampled_from([1.0, 5.0, 30.0]))
    probs = gains_of(seed, n).pow(sharpness)
    probs = probs / probs.sum()
    inclusion = inclusion_probabilities(probs, budget)
    assert ((inclusion >= 0) & (inclusion <= 1)).all()
    assert inclusion.sum().item() == pytest.approx(budget, abs=1e-9)
    free = inclusion < 1
    share = inclusion[free] / probs[free]
    torch.testing.assert_close(share, share[:1].expand_as(share))


@given(seed=st.integers(0, 10**6), n=st.integers(1, 30), offset=st.floats(0, 1, exclude_max=True), data=st.data())
@few
def test_exactly_the_budget_of_different_samples_is_drawn(seed, n, offset, data):
    budget = data.draw(st.integers(1, n))
    gains = gains_of(seed, n)
    result = rad_distribution(gains, data.draw(st.integers(0, n - 1)), min_support=budget)
    inclusion = inclusion_probabilities(result.probs, budget)
    drawn = systematic_sample(inclusion, offset)
    assert len(set(drawn.tolist())) == len(drawn) == budget
    assert drawn.tolist() == sorted(drawn.tolist())
    assert (inclusion[drawn] > 0).all()
    assert set((inclusion == 1).nonzero().squeeze(1).tolist()) <= set(drawn.tolist())


@pytest.mark.parametrize("offset", [0.0, 5e-13, 1e-9, 1 - 1e-9, 1 - 5e-13, 1 - 2.0**-53])
def test_offsets_at_both_ends_draw_the_budget(offset):
    for inclusion in ([0.5, 0.5, 1.0, 0.0], [0.1] * 10 + [0.0], [1.0, 1.0], [1 / 3] * 6, [0.0, 0.7, 0.7, 0.6]):
        assert len(systematic_sample(torch.tensor(inclusion, dtype=F64), offset)) == round(sum(inclusion))


def test_over_all_offsets_a_sample_is_drawn_as_often_as_its_chance():
    inclusion = inclusion_probabilities(torch.tensor([0.5, 0.2, 0.1, 0.1, 0.06, 0.04], dtype=F64), 3)
    grid = 1000
    counts = torch.zeros(6, dtype=F64)
    for i in range(grid):
        counts[systematic_sample(inclusion, (i + 0.5) / grid)] += 1
    torch.testing.assert_close(counts / grid, inclusion, atol=1e-9, rtol=0)


def test_a_pool_of_many_samples_keeps_its_budget():
    gains = gains_of(0, 200_000)
    inclusion = inclusion_probabilities(rad_distribution(gains, 20_000, min_support=5_000).probs, 5_000)
    for offset in (0.0, 0.37, 0.999999):
        assert len(systematic_sample(inclusion, offset)) == 5_000


def test_half_precision_and_graphs_are_taken_in_and_float64_comes_out():
    gains = torch.tensor([1.0, 0.5, 0.25], dtype=torch.bfloat16, requires_grad=True)
    result = rad_distribution(gains, 1)
    assert result.probs.dtype == F64
    assert not result.probs.requires_grad


def test_margin_gains_are_one_minus_the_margin_with_a_floor():
    probs = torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.4, 0.2, 0.4]], dtype=F64)
    torch.testing.assert_close(margin_gains(probs), torch.tensor([0.8, 1e-3, 1.0], dtype=F64))
    assert margin_gains(probs, eps=0.01)[1] == 0.01


def test_entropy_gains_are_the_share_of_the_largest_entropy():
    probs = torch.tensor([[0.25] * 4, [0.5, 0.5, 0, 0], [1, 0, 0, 0]], dtype=F64)
    torch.testing.assert_close(entropy_gains(probs), torch.tensor([1.0, 0.5, 1e-3], dtype=F64))


@pytest.mark.parametrize("gains", [margin_gains, entropy_gains])
def test_what_is_no_probability_is_refused(gains):
    with pytest.raises(InputError, match="sum to 1"):
        gains(torch.tensor([[0.5, 0.5001]], dtype=F64))
    with pytest.raises(InputError, match="0 or more"):
        gains(torch.tensor([[1.5, -0.5]]))
    with pytest.raises(InputError, match="sum to 1"):
        gains(torch.tensor([[torch.nan, 0.5]]))
    with pytest.raises(ShapeError, match="C >= 2"):
        gains(torch.ones(3, 1))
    with pytest.raises(InputError, match="floating point"):
        gains(torch.tensor([[1, 0]]))
    with pytest.raises(InputError, match="eps"):
        gains(torch.tensor([[0.5, 0.5]]), eps=0)
    gains(torch.tensor([[0.5, 0.5 + 9e-7]], dtype=F64))  # within the tolerance


@pytest.mark.parametrize("bad", [0.0, -0.1, float("nan"), float("inf")])
def test_gains_that_are_not_finite_and_above_0_are_refused(bad):
    with pytest.raises(InputError, match="above 0"):
        rad_distribution(torch.tensor([1.0, bad]), 0)


def test_gains_too_far_apart_for_float64_are_refused():
    with pytest.raises(InputError, match="too far apart"):
        rad_distribution(torch.tensor([1e300, 1e-300], dtype=F64), 1)


@pytest.mark.parametrize("m", [-1, 3, 1.0, True])
def test_more_wrong_labels_than_samples_or_fewer_than_none_are_refused(m):
    with pytest.raises(InputError, match=r"n_wrong.*0 to 2"):
        rad_distribution(torch.ones(3), m)


@pytest.mark.parametrize("k", [0, 4])
def test_a_least_support_outside_the_pool_is_refused(k):
    with pytest.raises(InputError, match=r"min_support.*1 to 3"):
        rad_distribution(torch.ones(3), 0, min_support=k)


@pytest.mark.parametrize("budget", [0, -1, 4])
def test_a_budget_outside_the_pool_is_refused(budget):
    with pytest.raises(InputError, match=r"budget.*1 to 3"):
        inclusion_probabilities(torch.full((3,), 1 / 3, dtype=F64), budget)


def test_a_budget_beyond_the_support_is_refused():
    with pytest.raises(InputError, match=r"larger than the support.*at most 2"):
        inclusion_probabilities(torch.tensor([0.5, 0.5, 0.0]), 3)


@pytest.mark.parametrize("probs", [[0.5, 0.49], [1.5, -0.5], [float("nan"), 1.0]])
def test_what_is_no_distribution_is_refused(probs):
    with pytest.raises(InputError, match="no distribution"):
        inclusion_probabilities(torch.tensor(probs, dtype=F64), 1)


@pytest.mark.parametrize("offset", [-0.1, 1.0, float("nan")])
def test_an_offset_outside_0_to_1_is_refused(offset):
    with pytest.raises(InputError, match="offset"):
        systematic_sample(torch.tensor([0.5, 0.5]), offset)


def test_chances_that_are_none_are_refused():
    with pytest.raises(InputError, match="whole number"):
        systematic_sample(torch.tensor([0.5, 0.6]), 0.5)
    with pytest.raises(InputError, match="whole number"):
        systematic_sample(torch.zeros(2), 0.5)
    with pytest.raises(InputError, match="chances"):
        systematic_sample(torch.tensor([1.5, 0.5]), 0.5)


@pytest.mark.parametrize("shape", [(0,), (2, 2), ()])
def test_what_is_no_pool_is_refused(shape):
    for call in (
        lambda x: rad_distribution(x, 0),
        lambda x: inclusion_probabilities(x, 1),
        lambda x: systematic_sample(x, 0.5),
    ):
        with pytest.raises(ShapeError, match=r"\(n,\)"):
            call(torch.ones(shape))
        with pytest.raises(InputError, match="floating point"):
            call([1.0])
