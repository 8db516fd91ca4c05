import pytest

from potstill.align.layers import layer_map, layer_pairs, parse_layer_map
from potstill.errors import InputError, RecipeError, ShapeError


@pytest.mark.parametrize(
    ("n_s", "n_t", "expected"),
    [
        (1, 1, [(0, 0)]),
        (1, 6, [(0, 5)]),
        (2, 4, [(0, 1), (1, 3)]),
        (3, 12, [(0, 3), (1, 7), (2, 11)]),
        (2, 5, [(0, 2), (1, 4)]),
        (3, 4, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_layer_map_by_hand(n_s, n_t, expected):
    assert layer_map(n_s, n_t) == expected


def test_layer_map_ends_on_the_last_layer_and_rises_for_all_small_sizes():
    for n_t in range(1, 20):
        for n_s in range(1, n_t + 1):
            pairs = layer_map(n_s, n_t)
            teachers = [j for _, j in pairs]
            assert [i for i, _ in pairs] == list(range(n_s))
            assert teachers[-1] == n_t - 1
            assert teachers == sorted(set(teachers))


def test_equal_depths_pair_equal_positions():
    assert layer_map(7, 7) == [(i, i) for i in range(7)]


def test_a_deeper_student_is_told_to_give_a_map_by_hand():
    with pytest.raises(ShapeError, match=r"student has 5 layers, more than the 4 of the teacher.*map by hand"):
        layer_map(5, 4)


@pytest.mark.parametrize(("n_s", "n_t"), [(0, 3), (3, 0), (-1, 2)])
def test_no_layers_cannot_be_mapped(n_s, n_t):
    with pytest.raises(ShapeError, match="at least one on each side"):
        layer_map(n_s, n_t)


def test_a_map_by_hand_may_reuse_teacher_layers_and_keeps_its_order():
    assert parse_layer_map([[1, 0], [0, 0], (2, 3)], 3, 4) == [(1, 0), (0, 0), (2, 3)]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("0-1", r"modules\.m\.map: a layer map is a list"),
        (3, "a layer map is a list"),
        ([], "the layer map is empty"),
        ([[0, 1], [1]], r"modules\.m\.map\[1\]: not a pair of layer numbers"),
        ([[0, 1.0]], "not a pair of layer numbers"),
        ([[0, True]], "not a pair of layer numbers"),
        (["01"], "not a pair of layer numbers"),
        ([[0, 6]], r"map\[0\]: teacher layer 6 does not exist; expected 0 to 5; got 6"),
        ([[3, 0]], "student layer 3 does not exist; expected 0 to 2; got 3"),
        ([[-1, 0]], "student layer -1 does not exist"),
        ([[0, 1], [0, 1]], r"map\[1\]: this pair is named twice"),
    ],
)
def test_bad_maps_by_hand_say_where_and_what(pairs, message):
    with pytest.raises(RecipeError, match=message):
        parse_layer_map(pairs, 3, 6, "modules.m.map")


def test_pairs_of_states_are_spread_evenly_or_taken_from_the_end():
    assert layer_pairs(2, 4) == [(0, 0), (1, 2), (2, 4)]
    assert layer_pairs(3, 8, "skip") == [(0, 0), (1, 2), (2, 5), (3, 8)]
    assert layer_pairs(2, 4, "last") == [(0, 2), (1, 3), (2, 4)]


@pytest.mark.parametrize("strategy", ["skip", "last"])
def test_the_last_states_are_always_paired_and_every_student_state_once(strategy):
    for n_t in range(1, 15):
        for n_s in range(1, n_t + 1):
            pairs = layer_pairs(n_s, n_t, strategy)
            assert [i for i, _ in pairs] == list(range(n_s + 1))
            assert pairs[-1] == (n_s, n_t)
            start = n_t - n_s if strategy == "last" else 0
            assert pairs[0] == (0, start)


def test_strategies_and_depths_that_cannot_be_paired_are_refused():
    with pytest.raises(InputError, match=r"unknown strategy.*\"skip\" or \"last\""):
        layer_pairs(2, 4, "emd")
    with pytest.raises(ShapeError, match="student has 5 layers"):
        layer_pairs(5, 4)
    with pytest.raises(ShapeError, match="at least one"):
        layer_pairs(0, 4)
