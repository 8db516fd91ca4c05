import math

import pytest

from potstill.errors import InputError
from potstill.evaluate.statistics import (
    holm,
    mean_interval,
    paired_interval,
    paired_p,
    proportion_error,
    ranks,
    ratio_error,
    t_quantile,
    two_sided_p,
)


@pytest.mark.parametrize(
    ("confidence", "freedom", "table"),
    [
        (0.95, 1, 12.706205),
        (0.95, 2, 4.302653),
        (0.95, 4, 2.776445),
        (0.95, 9, 2.262157),
        (0.99, 3, 5.840909),
        (0.90, 30, 1.697261),
        (0.95, 1000, 1.962339),
    ],
)
def test_t_quantile_equals_the_printed_tables(confidence, freedom, table):
    assert t_quantile(confidence, freedom) == pytest.approx(table, abs=1e-6)


def test_interval_of_five_seeds_by_hand():
    interval = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert interval.mean == 3
    assert interval.std == pytest.approx(math.sqrt(2.5))
    assert interval.n == 5
    assert interval.half_width == pytest.approx(2.776445 * math.sqrt(2.5) / math.sqrt(5), abs=1e-5)
    assert interval.low == pytest.approx(3 - interval.half_width)
    assert interval.excludes_zero


def test_pairing_sees_a_small_gain_that_seeds_would_hide():
    seeds = [0.50, 0.60, 0.70, 0.80]
    better = [0.51, 0.612, 0.709, 0.811]
    gain = paired_interval(better, seeds)
    assert gain.mean == pytest.approx(0.0105)
    assert gain.excludes_zero
    unpaired = mean_interval(better)
    assert unpaired.low < mean_interval(seeds).mean


def test_equal_values_give_an_interval_of_no_width():
    interval = paired_interval([1.0, 2.0], [1.0, 2.0])
    assert (interval.low, interval.mean, interval.high) == (0, 0, 0)
    assert not interval.excludes_zero


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan], [1.0, math.inf]])
def test_too_few_or_bad_values_are_refused(values):
    with pytest.raises(InputError):
        mean_interval(values)


def test_unequal_lists_are_no_pairs():
    with pytest.raises(InputError, match="not pairs"):
        paired_interval([1.0, 2.0], [1.0])


@pytest.mark.parametrize(("confidence", "freedom"), [(0, 3), (1, 3), (0.95, 0)])
def test_impossible_quantiles_are_refused(confidence, freedom):
    with pytest.raises(InputError):
        t_quantile(confidence, freedom)


def test_error_of_a_proportion_by_hand():
    assert proportion_error(0.97, 1000) == pytest.approx(math.sqrt(0.97 * 0.03 / 1000))
    assert proportion_error(1.0, 10) == 0
    assert math.isnan(proportion_error(0.5, 0))


def test_error_of_a_ratio_is_that_of_a_proportion_when_every_sample_has_one_unit():
    hits = [1, 0, 1, 1, 0, 1, 1, 1]
    assert ratio_error(hits, [1] * 8) == pytest.approx(proportion_error(6 / 8, 8) * math.sqrt(8 / 7))


def test_units_that_stand_or_fall_together_have_a_larger_error():
    together, apart = ratio_error([4, 0, 4, 0], [4] * 4), proportion_error(0.5, 16)
    assert together > 2 * apart


def test_ratio_error_without_units_is_unknown():
    assert math.isnan(ratio_error([0, 0], [0, 0]))
    assert math.isnan(ratio_error([1], [2]))


@pytest.mark.parametrize(
    ("t", "freedom", "table"),
    [(12.706205, 1, 0.05), (4.302653, 2, 0.05), (2.776445, 4, 0.05), (5.840909, 3, 0.01), (1.697261, 30, 0.10)],
)
def test_p_values_are_the_other_way_round_than_quantiles(t, freedom, table):
    assert two_sided_p(t, freedom) == two_sided_p(-t, freedom) == pytest.approx(table, abs=1e-6)


def test_paired_p_by_hand():
    # differences 2, 3, 1: t = 2 √3; with two degrees of freedom p = 1 - t / √(2 + t²)
    assert paired_p([3.0, 5.0, 4.0], [1.0, 2.0, 3.0]) == pytest.approx(1 - math.sqrt(12 / 14))


def test_differences_all_alike_leave_no_doubt():
    assert paired_p([1.0, 2.0], [1.0, 2.0]) == 1.0
    assert paired_p([2.0, 3.0], [1.0, 2.0]) == 0.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_ranks_share_places():
    assert ranks([0.5, 0.7, 0.5]) == [2.5, 1.0, 2.5]
    assert ranks([0.5, 0.7, 0.5], higher_is_better=False) == [1.5, 3.0, 1.5]


def test_a_p_value_needs_a_degree_of_freedom():
    with pytest.raises(InputError):
        two_sided_p(1.0, 0)
