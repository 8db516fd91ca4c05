import doctest
import importlib
import json
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.errors import InputError
from potstill.policies import DomainMixturePolicy, init_domain_weights, update_domain_weights

UNIFORM = [1 / 3] * 3
ppl = st.lists(st.tuples(*[st.floats(1.0, 200.0)] * 2, st.floats(0.01, 1)), min_size=1, max_size=6)


def close(weights, expected, tolerance=1e-12):
    assert weights.dtype == torch.float64
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64), atol=tolerance, rtol=0)


def test_the_hand_values():
    first = init_domain_weights([20.0, 10.0], [10.0, 10.0])
    close(first, [0.731059, 0.268941], 5e-7)
    close(update_domain_weights(first, [15.0, 10.0], [10.0, 10.0]), [0.658787, 0.341213], 5e-7)
    close(update_domain_weights(UNIFORM, [750.0, 2.0, 1.1], [1.0] * 3), [0.6667, 0.1667, 0.1667], 5e-5)


@given(rows=ppl, alpha=st.floats(0, 1))
@settings(max_examples=50)
def test_weights_sum_to_one_and_keep_the_floor(rows, alpha):
    student, teacher, prior = (torch.tensor(x, dtype=torch.float64) for x in zip(*rows))
    weights = update_domain_weights(prior / prior.sum(), student, teacher, alpha)
    assert weights.sum().item() == pytest.approx(1, abs=1e-9)
    assert (weights >= (1 - alpha) / len(rows) - 1e-15).all()
    assert init_domain_weights(student, teacher).sum().item() == pytest.approx(1, abs=1e-9)


def test_without_a_share_weights_are_equal_and_with_the_whole_the_normalised_product():
    prior, student = [0.2, 0.3, 0.5], [3.0, 4.0, 5.0]
    close(update_domain_weights(prior, student, [2.0] * 3, alpha=0), UNIFORM)
    psi = [r * math.exp(s / 2) for r, s in zip(prior, student)]
    close(update_domain_weights(prior, student, [2.0] * 3, alpha=1), [x / sum(psi) for x in psi])


def test_equal_ratios_lead_to_equal_weights():
    student, teacher = [6.0, 9.0, 15.0], [2.0, 3.0, 5.0]
    close(init_domain_weights(student, teacher), UNIFORM)
    close(update_domain_weights(UNIFORM, student, teacher), UNIFORM)
    moved = update_domain_weights([0.7, 0.2, 0.1], student, teacher)
    assert (moved - 1 / 3).abs().max() < 0.7 - 1 / 3


def test_a_constant_on_all_ratios_or_a_factor_on_both_perplexities_changes_nothing():
    prior, ratios = [0.5, 0.3, 0.2], [2.0, 1.5, 3.0]
    plain = update_domain_weights(prior, ratios, [1.0] * 3)
    close(update_domain_weights(prior, [r + 400 for r in ratios], [1.0] * 3), plain.tolist())
    close(update_domain_weights(prior, [2.0, 15.0, 3.0], [1.0, 10.0, 1.0]), plain.tolist())


def test_permuting_domains_permutes_weights():
    prior, student, teacher, order = [0.5, 0.3, 0.2], [2.0, 9.0, 3.0], [1.0, 2.0, 3.0], [2, 0, 1]
    moved = update_domain_weights(*([x[i] for i in order] for x in (prior, student, teacher)))
    close(moved, update_domain_weights(prior, student, teacher)[order].tolist())


def test_one_domain_has_all_the_weight():
    close(init_domain_weights([5.0], [2.0]), [1.0])
    close(update_domain_weights([1.0], [5.0], [2.0]), [1.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student_ppl": []}, "student_ppl"),
        ({"teacher_ppl": [1.0]}, "expected 2 numbers"),
        ({"student_ppl": [1.0, math.nan]}, "no perplexity"),
        ({"student_ppl": [1.0, math.inf]}, "no perplexity"),
        ({"teacher_ppl": [0.0, 1.0]}, "no perplexity"),
        ({"prev_weights": [1.5, -0.5]}, "no weights"),
        ({"prev_weights": [0.5, 0.4]}, "no weights"),
        ({"prev_weights": [1.0]}, "expected 2 numbers"),
        ({"alpha": 1.1}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
    ],
)
def test_what_is_no_weight_or_perplexity_is_refused(change, message):
    options = {"prev_weights": [0.5, 0.5], "student_ppl": [2.0, 2.0], "teacher_ppl": [1.0, 1.0], **change}
    with pytest.raises(InputError, match=message):
        update_domain_weights(**options)


class Measured:
    """Perplexities that are given, and a count of how often each model was asked."""

    def __init__(self, student, teacher):
        self.rows, self.asked = {"student": student, "teacher": teacher}, Counter()

    def __call__(self, side):
        self.asked[side] += 1
        return self.rows[side]


def policy(sizes=(40, 30, 20), student=(30.0, 20.0, 10.0), **options):
    domains = {name: [(name, i) for i in range(size)] for name, size in zip("abcdef", sizes)}
    return DomainMixturePolicy(domains, Measured(list(student), [10.0] * len(sizes)), **options)


def test_the_first_pool_comes_evenly_from_the_corpus_and_later_ones_by_weight():
    mixture, n = policy(sizes=(900, 90, 10), seed=3), 100_000
    for expected in ([0.9, 0.09, 0.01], None):
        found = Counter(name for name, _ in mixture.next_pool(n))
        for name, p in zip("abc", expected or mixture.weights):
            assert abs(found[name] - n * p) < 4 * math.sqrt(n * p * (1 - p))


def test_a_small_domain_is_cycled_evenly_in_changing_orders():
    drawn = policy(sizes=(10,), student=(2.0,)).next_pool(30)
    assert set(Counter(drawn[:25]).values()) == {2, 3}
    assert set(Counter(drawn).values()) == {3}
    assert drawn[:10] != drawn[10:20]


def test_weights_are_renewed_at_the_end_of_every_interval():
    mixture = policy(interval=3)
    mixture.next_pool(4)
    first = mixture.weights
    close(torch.tensor(first, dtype=torch.float64), init_domain_weights([30.0, 20.0, 10.0], [10.0] * 3).tolist())
    assert [mixture.on_step_end(step) for step in range(1, 7)] == [False, False, True] * 2
    twice = first
    for _ in range(2):
        twice = update_domain_weights(twice, [30.0, 20.0, 10.0], [10.0] * 3).tolist()
    assert mixture.weights == twice
    assert mixture.eval_fn.asked == {"student": 3, "teacher": 1}


@pytest.mark.parametrize("stop", range(4))
def test_a_resumed_mixture_goes_on_exactly(stop):
    def go_on(mixture, intervals):
        pools = []
        for i in intervals:
            pools.append(mixture.next_pool(17))
            mixture.on_step_end(5 * (i + 1))
        return pools

    straight = policy(sizes=(7, 30, 3), interval=5, seed=11)
    stopped = policy(sizes=(7, 30, 3), interval=5, seed=11)
    pools = go_on(straight, range(6))
    go_on(stopped, range(stop))
    again = policy(sizes=(7, 30, 3), interval=5, seed=11)
    again.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert go_on(again, range(stop, 6)) == pools[stop:]
    assert again.state_dict() == straight.state_dict()
    assert again.eval_fn.asked["teacher"] == (0 if stop else 1)


def test_seeds_draw_differently_and_the_same_seed_alike():
    pools = [policy(seed=seed).next_pool(50) for seed in (0, 0, 1)]
    assert pools[0] == pools[1] != pools[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domains": {}}, "no domain"),
        ({"domains": {"a": [1], "b": []}}, r"domains\.b"),
        ({"interval": 0}, "interval"),
        ({"alpha": -0.1}, "alpha"),
        ({"seed": -1}, "seed"),
    ],
)
def test_options_that_do_not_fit_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        DomainMixturePolicy(**{"domains": [[1], [2]], "eval_fn": lambda side: [2.0, 2.0], **change})


def test_a_wrong_number_of_perplexities_is_refused():
    with pytest.raises(InputError, match="expected 2, one per domain"):
        DomainMixturePolicy([[1], [2]], lambda side: [2.0]).next_pool(1)


def test_a_state_of_other_domains_is_refused():
    with pytest.raises(InputError, match="other domains"):
        policy().load_state_dict(policy(sizes=(1, 2), student=(2.0, 2.0)).state_dict())
    with pytest.raises(InputError, match="not the state"):
        policy().load_state_dict({})


def test_the_examples_in_the_docstrings_run():
    failed, tried = doctest.testmod(importlib.import_module("potstill.policies.domain_weights"))
    assert tried > 0
    assert failed == 0
