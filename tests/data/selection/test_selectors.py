"""Selectors: one interface, never the same sample twice, the same ids from the same seed, exact resume."""

import json

import pytest
import torch

from potstill.data.selection import (
    EntropySelector,
    KCenterSelector,
    MarginSelector,
    RandomSelector,
    RobustActiveSelector,
    inclusion_probabilities,
    margin_gains,
    rad_distribution,
)
from potstill.errors import InputError, RecipeError, ShapeError

SELECTORS = [RandomSelector, MarginSelector, EntropySelector, KCenterSelector, RobustActiveSelector]
every_selector = pytest.mark.parametrize("kind", SELECTORS, ids=lambda kind: kind.name)


def probs_of(n=30, C=4, seed=0):
    return (2 * torch.randn(n, C, generator=torch.Generator().manual_seed(seed))).softmax(-1)


@every_selector
def test_rounds_buy_different_samples_until_the_pool_is_empty(kind):
    selector, bought = kind(seed=3), []
    for budget in (7, 12, 11):
        ids = selector.select(probs_of(), budget, teacher_error=0.2)
        assert ids.dtype == torch.int64
        assert ids.tolist() == sorted(ids.tolist())
        assert len(ids) == budget
        bought += ids.tolist()
    assert sorted(bought) == list(range(30))
    assert selector.queried == bought
    with pytest.raises(InputError, match="budget"):
        selector.select(probs_of(), 1)


@every_selector
def test_the_same_seed_gives_the_same_samples_and_leaves_the_global_generators_alone(kind):
    before = torch.get_rng_state()
    first, second = (kind(seed=5).select(probs_of(), 6, n_wrong=8).tolist() for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", [RandomSelector, KCenterSelector, RobustActiveSelector], ids=lambda kind: kind.name)
def test_seeds_matter(kind):
    assert len({tuple(kind(seed=s).select(probs_of(), 6, n_wrong=8).tolist()) for s in range(5)}) > 1


@every_selector
def test_a_saved_state_goes_on_exactly_through_json(kind):
    straight = kind(seed=2)
    straight.select(probs_of(), 5, n_wrong=4)
    resumed = kind(seed=99)
    resumed.load_state_dict(json.loads(json.dumps(straight.state_dict())))
    for seed in (1, 2):
        ids = [s.select(probs_of(seed=seed), 5, n_wrong=4).tolist() for s in (straight, resumed)]
        assert ids[0] == ids[1]


@pytest.mark.parametrize("kind", [k for k in SELECTORS if k is not KCenterSelector], ids=lambda kind: kind.name)
def test_samples_that_were_bought_are_not_looked_at(kind):
    plain, spoilt = kind(seed=1), kind(seed=1)
    probs = probs_of()
    bought = plain.select(probs, 5)
    spoilt.select(probs, 5)
    after = probs.clone()
    after[bought] = torch.nan
    assert plain.select(probs, 5).tolist() == spoilt.select(after, 5).tolist()


def test_margin_and_entropy_buy_the_most_doubtful():
    probs = torch.tensor([[0.9, 0.05, 0.05], [0.5, 0.5, 0.0], [0.4, 0.3, 0.3], [0.48, 0.32, 0.2], [0.98, 0.01, 0.01]])
    assert MarginSelector().select(probs, 2).tolist() == [1, 2]
    assert EntropySelector().select(probs, 2).tolist() == [2, 3]


def test_k_center_buys_what_is_farthest_from_all_it_has():
    features = torch.tensor([[0.0], [0.1], [5.0], [10.0], [10.1]])
    probs = probs_of(5)
    selector = KCenterSelector(seed=0)
    first = selector.select(probs, 1, features=features).item()
    far = (features - features[first]).abs().argmax().item()
    assert selector.select(probs, 1, features=features).item() == far
    assert selector.select(probs, 1, features=features).item() == 2  # 4.9 or more from either end


def test_the_robust_selector_draws_as_the_game_says():
    probs, counts = probs_of(12, seed=4), torch.zeros(12, dtype=torch.float64)
    chances = inclusion_probabilities(rad_distribution(margin_gains(probs), 4, min_support=3).probs, 3)
    for seed in range(1500):
        counts[RobustActiveSelector(seed=seed).select(probs, 3, n_wrong=4)] += 1
    # Three standard errors of a share of 1500 draws are at most 0.039.
    torch.testing.assert_close(counts / 1500, chances, atol=0.045, rtol=0)


def test_a_teacher_without_errors_gets_the_most_doubtful_samples():
    chosen = RobustActiveSelector(seed=0).select(probs_of(), 6)
    assert chosen.tolist() == MarginSelector().select(probs_of(), 6).tolist()


@pytest.mark.parametrize(("error", "wrong"), [(0.0, 0), (0.07, 7), (0.071, 8), (1.0, 99)])
def test_the_number_of_wrong_labels_follows_from_the_error_of_the_teacher(error, wrong):
    probs = probs_of(100)
    by_share = RobustActiveSelector(seed=1).select(probs, 10, teacher_error=error)
    by_number = RobustActiveSelector(seed=1).select(probs, 10, n_wrong=wrong)
    assert by_share.tolist() == by_number.tolist()


def test_wrong_labels_are_counted_on_what_is_left_of_the_pool():
    selector = RobustActiveSelector(seed=1)
    selector.select(probs_of(10), 6, n_wrong=9)
    with pytest.raises(InputError, match="0 to 3"):
        selector.select(probs_of(10), 2, n_wrong=4)


def test_entropy_may_be_the_gain():
    probs = torch.tensor([[0.5, 0.5, 0.0], [0.4, 0.3, 0.3], [0.98, 0.01, 0.01]])
    assert RobustActiveSelector(gain="entropy").select(probs, 1).tolist() == [1]
    assert RobustActiveSelector(gain="margin").select(probs, 1).tolist() == [0]


@every_selector
def test_bad_arguments_are_refused_and_change_nothing(kind):
    selector = kind(seed=0)
    selector.select(probs_of(), 3)
    before = json.dumps(selector.state_dict())
    for budget in (0, 28, 1.0, True):
        with pytest.raises(InputError, match="budget"):
            selector.select(probs_of(), budget)
    with pytest.raises(InputError, match="teacher_error"):
        selector.select(probs_of(), 3, teacher_error=1.1)
    with pytest.raises(InputError, match="n_wrong"):
        selector.select(probs_of(), 3, n_wrong=27)
    with pytest.raises(InputError, match="one of both"):
        selector.select(probs_of(), 3, n_wrong=1, teacher_error=0.1)
    with pytest.raises(ShapeError, match=r"\(30, C\).*whole pool"):
        selector.select(probs_of(27), 3)
    with pytest.raises(InputError, match="sum to 1"):
        selector.select(probs_of() * 2, 3)
    with pytest.raises(ShapeError, match="features"):
        selector.select(probs_of(), 3, features=torch.zeros(29, 2))
    assert json.dumps(selector.state_dict()) == before


def test_k_center_refuses_vectors_that_are_not_finite():
    with pytest.raises(InputError, match="finite"):
        KCenterSelector().select(probs_of(5), 2, features=torch.full((5, 2), torch.nan))


def test_a_state_of_another_selector_or_gain_is_refused():
    with pytest.raises(RecipeError, match="selector"):
        RandomSelector().load_state_dict(MarginSelector().state_dict())
    with pytest.raises(RecipeError, match="settings"):
        RobustActiveSelector("entropy").load_state_dict(RobustActiveSelector("margin").state_dict())


@pytest.mark.parametrize(
    "damage",
    [{"queried": [1, 1]}, {"queried": [40]}, {"queried": "1"}, {"queried": [1], "pool": None}, {"random": {}}],
    ids=["twice", "outside", "text", "no pool", "no generator"],
)
def test_a_damaged_state_is_refused_and_changes_nothing(damage):
    selector = RandomSelector(seed=1)
    selector.select(probs_of(), 2)
    before = json.dumps(selector.state_dict())
    with pytest.raises(InputError):
        selector.load_state_dict({**selector.state_dict(), **damage})
    without = selector.state_dict()
    del without["pool"]
    with pytest.raises(InputError, match=r"selection\.pool"):
        selector.load_state_dict(without)
    assert json.dumps(selector.state_dict()) == before


def test_unknown_gains_and_seeds_are_refused():
    with pytest.raises(InputError, match='Did you mean "margin"'):
        RobustActiveSelector("margins")
    with pytest.raises(InputError, match="eps"):
        RobustActiveSelector(eps=0)
    with pytest.raises(InputError, match="seed"):
        RandomSelector(seed=-1)
