import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import InputError, RecipeError
from potstill.policies import loss_decrement_reward

LOSSES = st.floats(1e-3, 1e3)


def test_the_default_is_the_relative_decrement():
    assert loss_decrement_reward(2.0, 1.5) == pytest.approx(0.25)
    assert loss_decrement_reward(2.0, 2.5) == pytest.approx(-0.25)


def test_a_relative_reward_is_clipped_to_one_by_default():
    assert loss_decrement_reward(1.0, 5.0) == -1.0
    assert loss_decrement_reward(1.0, -5.0) == 1.0
    assert loss_decrement_reward(1.0, 5.0, clip=None) == -4.0
    assert loss_decrement_reward(1.0, 1.5, clip=0.2) == -0.2


def test_an_absolute_reward_is_the_plain_difference_unless_a_clip_is_given():
    assert loss_decrement_reward(5.0, 2.0, mode="absolute") == 3.0
    assert loss_decrement_reward(5.0, 2.0, mode="absolute", clip=None) == 3.0
    assert loss_decrement_reward(5.0, 2.0, mode="absolute", clip=1.0) == 1.0
    assert loss_decrement_reward(2.0, 5.0, "absolute", 0.5) == -0.5


def test_the_signature_shows_the_default_clip_as_a_number():
    assert inspect.signature(loss_decrement_reward).parameters["clip"].default == 1.0


def test_the_divisor_has_a_floor_and_no_sign():
    assert loss_decrement_reward(0.0, -1e-9) == pytest.approx(0.1)
    assert loss_decrement_reward(0.0, -0.5, eps=1.0) == 0.5
    assert loss_decrement_reward(-2.0, -3.0) == 0.5


def test_tensors_are_taken_and_a_plain_float_comes_back():
    before = torch.tensor(2.0, requires_grad=True)
    reward = loss_decrement_reward(before, torch.tensor([1.5], dtype=torch.float64))
    assert type(reward) is float
    assert reward == 0.25
    assert type(loss_decrement_reward(3, 9)) is float


@given(LOSSES, LOSSES)
def test_the_reward_is_above_zero_exactly_when_the_loss_fell(before, after):
    for mode in ("relative", "absolute"):
        assert math.copysign(1, loss_decrement_reward(before, after, mode)) == math.copysign(1, before - after)


@given(LOSSES, LOSSES, st.sampled_from([0.5, 2.0, 1024.0]))
def test_the_relative_reward_does_not_know_the_unit_of_the_loss(before, after, unit):
    assert loss_decrement_reward(unit * before, unit * after) == loss_decrement_reward(before, after)


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf"), "low", torch.ones(2), None])
def test_a_loss_that_is_no_finite_number_is_refused_by_name(place, loss):
    with pytest.raises(InputError, match=place):
        loss_decrement_reward(**{"before": 1.0, "after": 1.0, place: loss})


@pytest.mark.parametrize(("name", "value"), [("clip", 0.0), ("clip", -1.0), ("clip", float("nan")), ("eps", 0.0)])
def test_limits_must_be_above_zero(name, value):
    with pytest.raises(InputError, match=name):
        loss_decrement_reward(1.0, 0.5, **{name: value})


def test_an_unknown_mode_is_refused_with_the_nearest_name():
    with pytest.raises(RecipeError, match='Did you mean "relative"'):
        loss_decrement_reward(1.0, 0.5, mode="relativ")
