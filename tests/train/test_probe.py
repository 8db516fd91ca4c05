"""The yardsticks of the reward, on numbers that can be checked by hand."""

import pytest
from toy_models import Toy, objectives

from potstill.errors import NumericsError
from potstill.train import DistillModule
from potstill.train.probe import reward_of, yardstick_value

BEFORE = {"answer": 2.0, "hidden.image": 10.0, "hidden.text": 4.0}
AFTER = {"answer": 1.5, "hidden.image": 8.0, "hidden.text": 5.0}


@pytest.fixture
def module():
    return DistillModule(Toy(4, 1), objectives(hidden=0.1))


def test_the_reference_weighs_all_terms_of_all_modules(module):
    assert yardstick_value(BEFORE, module, "reference") == pytest.approx(2.0 + 0.1 * 14.0)
    assert reward_of(BEFORE, AFTER, module, "reference") == pytest.approx((3.4 - 2.8) / 3.4)


def test_prediction_ignores_hidden_terms(module):
    assert reward_of(BEFORE, AFTER, module, "prediction") == pytest.approx(0.25)


def test_per_term_is_the_mean_of_the_relative_decrements(module):
    assert reward_of(BEFORE, AFTER, module, "per_term") == pytest.approx((0.25 + 0.2 - 0.25) / 3)


def test_an_absolute_reward_is_the_plain_difference(module):
    assert reward_of(BEFORE, AFTER, module, "reference", mode="absolute", clip=None) == pytest.approx(0.6)


def test_a_probe_that_is_not_finite_names_the_term(module):
    with pytest.raises(NumericsError, match=r'"hidden\.text" became nan'):
        reward_of(BEFORE, {**AFTER, "hidden.text": float("nan")}, module, "prediction")
