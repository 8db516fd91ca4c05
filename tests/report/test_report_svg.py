import math

import pytest

from potstill.report import text
from potstill.report.svg import Scale, band, element, fitted, path, thin, tick_labels


def test_element_escapes_text_and_attributes():
    assert element("text", "<&", class_='"x', text_anchor="end", x=1.25, skip=None) == (
        '<text class="&#34;x" text-anchor="end" x="1.2">&lt;&amp;</text>'
    )


def test_scale_maps_and_clips():
    scale = Scale(0, 10, 100, 200)
    assert [scale(value) for value in (0, 5, 10, -3, 99)] == [100, 150, 200, 100, 200]
    log = Scale(1, 100, 0, 2, is_log=True)
    assert log(10) == pytest.approx(1)


def test_scale_turns_logarithmic_only_for_positive_values_far_apart():
    assert fitted([0.1, 10], 0, 1, log_above=20).is_log
    assert not fitted([0.0, 10], 0, 1, log_above=20).is_log
    assert not fitted([1, 10], 0, 1, log_above=20).is_log


@pytest.mark.parametrize(
    "values", [[], [math.nan], [math.inf, -math.inf], [3.0], [0.0, 0.0], [-2.0, -2.0], [1e-9], [1e99, -1e99]]
)
def test_scale_of_odd_values_is_usable(values):
    scale = fitted(values, 0, 100)
    assert scale.low < scale.high
    assert all(math.isfinite(scale(value)) for value in (0.0, 1.0, -1e30))
    assert len(tick_labels(scale.ticks())) == len(scale.ticks()) <= 12


def test_ticks_are_round_and_inside():
    assert Scale(0, 2000, 0, 1).ticks(5) == [0, 500, 1000, 1500, 2000]
    assert Scale(0.013, 0.97, 0, 1).ticks(4) == pytest.approx([0.5])
    assert Scale(0.02, 30, 0, 1, is_log=True).ticks() == pytest.approx([0.1, 1, 10])


def test_tick_labels_of_one_axis_look_alike():
    assert tick_labels([0, 0.5, 1.0]) == ["0.0", "0.5", "1.0"]
    assert tick_labels([0, 20_000, 100_000]) == ["0", "20k", "100k"]
    assert tick_labels([0, 2_500_000, 12_500_000]) == ["0", "2.5M", "12.5M"]
    assert tick_labels([-1, 0, 1]) == ["−1", "0", "1"]
    assert tick_labels([0.1, 1, 10], is_log=True) == ["0.1", "1", "10"]


def test_gaps_break_lines_and_bands():
    assert path([(0, 0), (1, 1), (2, math.nan), (3, 3)]) == "M0 0L1 1M3 3"
    assert band([(0, 0, 1), (1, 0, 1), (2, math.nan, 1), (3, 0, 1)]) == "M0 0L1 0L1 1L0 1Z"


def test_thinning_keeps_mean_and_range_and_ignores_what_is_not_finite():
    xs, ys = list(range(1000)), [math.nan if x % 2 else float(x) for x in range(1000)]
    buckets = thin(xs, ys, 10)
    assert len(buckets) == 10
    assert (buckets[0].low, buckets[0].high, buckets[0].mean) == (0, 98, 49)
    assert buckets[0].x == 49.5
    assert math.isnan(thin([1], [math.inf])[0].mean)
    assert thin([], []) == []


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.scaled(3_120_000), "3.12\u00a0M"),
        (text.scaled(999_999, "B"), "1.00\u00a0MB"),
        (text.scaled(512, "B"), "512\u00a0B"),
        (text.scaled(None), "–"),
        (text.significant(0.01234), "0.0123"),
        (text.significant(-1234.4), "−1,234"),
        (text.significant(math.nan), "–"),
        (text.significant(1.5e-7), "1.50·10^−7"),
        (text.percent(0.9523), "95.2\u00a0%"),
        (text.points(-0.021), "−2.1"),
        (text.points(-0.0001), "±0.0"),
        (text.ratio(2.94), "2.9×"),
        (text.milliseconds(3.217), "3.22\u00a0ms"),
        (text.shorten("abcdefghij", 5), "ab…ij"),
        (text.listed(["a", "b", "c"]), "a, b and c"),
        (text.short(0.1), "0.1"),
    ],
)
def test_numbers_are_written_for_people(shown, expected):
    assert shown == expected
