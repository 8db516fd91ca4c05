"""How long a step takes, and what that buys."""

import pytest
from toy_recipes import toy_recipe

from potstill.recipe import load_recipe
from potstill.systems.compare.budget import TIMED, WARM_UP, seconds_per_step, steps_in


def test_minutes_buy_whole_steps_and_at_least_one():
    assert steps_in(2.0, 0.25) == 480
    assert steps_in(1.0, 0.7) == 85
    assert steps_in(0.001, 9.0) == 1


def test_a_step_of_a_method_with_stages_is_the_mean_over_its_steps(digit_teacher):
    """Stage one takes 1 s a step and has a quarter of the steps, stage two takes 3 s; warming up takes 100 s a step."""
    kd, label = toy_recipe()["objectives"]
    stages = [
        {"name": "one", "objectives": [label], "train": {"steps": 10}},
        {"name": "two", "objectives": [kd], "teacher": {"model": "student"}, "train": {"steps": 30}},
    ]
    recipe = load_recipe(toy_recipe(digit_teacher, stages=stages))
    taken = [*[100.0] * WARM_UP, *[1.0] * TIMED, *[100.0] * WARM_UP, *[3.0] * TIMED]
    now = 0.0

    def clock():
        nonlocal now
        now += taken.pop(0)
        return now

    assert seconds_per_step(recipe, clock) == pytest.approx((10 * 1 + 30 * 3) / 40)
    assert taken == []
