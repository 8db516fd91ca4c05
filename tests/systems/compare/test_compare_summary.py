"""Means, intervals, paired tests and ranks against numbers worked out by hand."""

import math

import pytest

from potstill.errors import InputError
from potstill.evaluate.statistics import mean_interval
from potstill.systems.compare.summary import measures_of, seed_ranks, summarise


def rows(**scores):
    """``rows(a=[0.1, 0.2])``: one row a seed; None = that seed was not run."""
    return [
        {
            "recipe": "r", "method": m, "budget": "steps-4", "seed": s, "score": v,
            "parameters": 10, "seconds": 2, "steps": 4,
        }
        for m, values in scores.items()
        for s, v in enumerate(values)
        if v is not None
    ]  # fmt: skip


def by_method(summary, measure="score"):
    return {row["method"]: row for row in summary if row["measure"] == measure}


def test_differences_are_paired_by_seed():
    found = by_method(summarise(rows(a=[0.1, 0.2, 0.3], b=[0.3, 0.5, 0.4]), ["a", "b"]))
    b = found["b"]
    assert b["mean"] == pytest.approx(0.4)
    assert b["ci95"] == pytest.approx(4.302653 * 0.1 / math.sqrt(3), abs=1e-6)
    # differences 0.2, 0.3, 0.1: mean 0.2, deviation 0.1, t = 2 √3 with two degrees of freedom
    assert b["difference"] == pytest.approx(0.2)
    assert b["difference_ci95"] == pytest.approx(4.302653 * 0.1 / math.sqrt(3), abs=1e-6)
    assert b["p"] == pytest.approx(1 - math.sqrt(12 / 14))
    assert (b["won"], b["pairs"], b["against"]) == (3, 3, "a")
    assert found["a"]["difference"] is found["a"]["p"] is found["a"]["won"] is None


def test_p_values_are_corrected_for_the_number_of_methods():
    found = by_method(summarise(rows(a=[0.1, 0.2, 0.3], b=[0.3, 0.5, 0.4], c=[0.1, 0.3, 0.3]), ["a", "b", "c"]))
    assert found["b"]["p_holm"] == pytest.approx(2 * found["b"]["p"])
    assert found["c"]["p_holm"] == pytest.approx(max(found["c"]["p"], found["b"]["p_holm"]))


def test_only_seeds_that_both_methods_have_are_paired():
    found = by_method(summarise(rows(a=[0.1, None, 0.3, 0.2], b=[0.2, 0.9, 0.5, None]), ["a", "b"]))
    assert found["b"]["pairs"] == 2
    assert found["b"]["difference"] == pytest.approx(0.15)
    assert found["b"]["seeds"] == 3


def test_one_seed_has_a_mean_and_nothing_it_cannot_say():
    found = by_method(summarise(rows(a=[0.1], b=[0.2]), ["a", "b"]))["b"]
    assert (found["mean"], found["difference"], found["won"], found["rank"]) == (0.2, 0.1, 1, 1)
    assert found["ci95"] is found["p"] is found["p_holm"] is found["difference_ci95"] is None


def test_ranks_share_places_and_the_best_mean_rank_comes_first():
    assert seed_ranks({"a": {0: 0.5, 1: 0.1}, "b": {0: 0.5, 1: 0.2}, "c": {0: 0.4, 1: 0.3}}) == {
        "a": {0: 1.5, 1: 3.0},
        "b": {0: 1.5, 1: 2.0},
        "c": {0: 3.0, 1: 1.0},
    }
    summary = summarise(rows(a=[0.5, 0.1], b=[0.5, 0.2], c=[0.4, 0.3]), ["a", "b", "c"])
    assert [(row["method"], row["rank"]) for row in summary] == [("b", 1.75), ("c", 2.0), ("a", 2.25)]


def test_a_lower_divergence_wins():
    data = [{**row, "kl": 1 - row["score"]} for row in rows(a=[0.1, 0.2, 0.3], b=[0.3, 0.5, 0.4])]
    found = by_method(summarise(data, ["a", "b"]), "kl")
    assert found["b"]["won"] == 3
    assert found["b"]["difference"] == pytest.approx(-0.2)
    assert found["b"]["rank"] == 1


def test_all_splits_are_summed_up():
    data = [{**row, "score.other": 0.5, "kl": None} for row in rows(a=[0.1, 0.2])]
    assert measures_of(data) == ["score", "score.other"]


def test_recipes_and_budgets_are_kept_apart():
    data = rows(a=[0.1, 0.2]) + [{**row, "recipe": "q"} for row in rows(a=[0.7, 0.8])]
    found = {row["recipe"]: row["mean"] for row in summarise(data, ["a"])}
    assert found == {"r": pytest.approx(0.15), "q": pytest.approx(0.75)}


def test_no_run_is_an_empty_summary_and_an_unknown_rival_is_refused():
    assert summarise([], ["a"]) == []
    with pytest.raises(InputError, match='"b" is not compared'):
        summarise([], ["a"], "b")


def test_a_method_that_is_always_equal_is_no_discovery():
    found = by_method(summarise(rows(a=[0.1, 0.2], b=[0.1, 0.2]), ["a", "b"]))["b"]
    assert (found["p"], found["p_holm"], found["won"]) == (1.0, 1.0, 0)
    assert mean_interval([0.1, 0.2]).half_width == pytest.approx(found["ci95"])
