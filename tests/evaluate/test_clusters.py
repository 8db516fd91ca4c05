import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.errors import InputError, ShapeError
from potstill.evaluate import cluster_accuracy, match_clusters
from potstill.evaluate.clusters import cheapest_matching


def cheapest_by_trying(costs):
    R, C = costs.shape
    if R > C:
        return cheapest_by_trying(costs.T)
    return min(sum(costs[i, j] for i, j in enumerate(columns)) for columns in itertools.permutations(range(C), R))


@given(seed=st.integers(0, 10**6), R=st.integers(1, 5), C=st.integers(1, 5), whole=st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_other_matching_is_cheaper(seed, R, C, whole):
    draws = np.random.default_rng(seed)
    costs = draws.integers(-3, 4, (R, C)).astype(float) if whole else draws.normal(size=(R, C))
    pairs = cheapest_matching(costs)
    assert len(pairs) == len({i for i, _ in pairs}) == len({j for _, j in pairs}) == min(R, C)
    assert sum(costs[i, j] for i, j in pairs) == pytest.approx(cheapest_by_trying(costs), abs=1e-12)


def test_large_tables_equal_scipy():
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is no dependency; small tables are tried out")
    for seed, shape in enumerate([(40, 40), (25, 60), (60, 25)]):
        costs = np.random.default_rng(seed).normal(size=shape)
        rows, columns = optimize.linear_sum_assignment(costs)
        assert sum(costs[i, j] for i, j in cheapest_matching(costs)) == pytest.approx(costs[rows, columns].sum())


def test_names_of_clusters_do_not_matter():
    true = torch.tensor([0, 0, 1, 1, 2, 2])
    assert cluster_accuracy(true, torch.tensor([5, 5, 0, 0, -3, -3])) == 1
    assert match_clusters(true, torch.tensor([5, 5, 0, 0, -3, -3])) == {5: 0, 0: 1, -3: 2}


def test_the_matching_is_the_best_for_all_together_and_not_class_by_class():
    # Cluster 0 shares most with class 0; yet giving it to class 1 is better in all.
    true = [0] * 9 + [1] * 4
    predicted = [0] * 5 + [1] * 4 + [0] * 4
    assert cluster_accuracy(true, predicted) == pytest.approx(8 / 13)
    assert match_clusters(true, predicted) == {0: 1, 1: 0}


def test_clusters_that_are_left_over_count_as_wrong():
    assert cluster_accuracy([0, 0, 0, 1], [0, 1, 2, 3]) == 0.5
    assert cluster_accuracy([0, 1, 2, 3], [0, 0, 0, 0]) == 0.25
    assert cluster_accuracy([-1, -1, 3], [4, 5, 6]) == pytest.approx(2 / 3)  # -1 is a class as any other


def test_arrays_lists_and_tensors_are_alike():
    for kind in (list, np.array, torch.tensor):
        assert cluster_accuracy(kind([1, 1, 0]), kind([0, 0, 0])) == pytest.approx(2 / 3)


def test_what_are_no_clusters_is_refused():
    with pytest.raises(ShapeError, match="lengths differ"):
        cluster_accuracy([0, 1], [0])
    with pytest.raises(ShapeError, match="one axis"):
        cluster_accuracy([[0]], [[0]])
    with pytest.raises(InputError, match="no sample"):
        cluster_accuracy([], [])
    with pytest.raises(InputError, match="integers"):
        cluster_accuracy([0.5], [0])
    with pytest.raises(InputError, match="finite"):
        cheapest_matching(np.array([[np.nan]]))
    with pytest.raises(ShapeError, match="costs"):
        cheapest_matching(np.zeros((0, 3)))
