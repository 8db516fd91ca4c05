"""The yardsticks of the reward, on numbers that can be checked by hand."""

import pytest
import torch
from toy_models import Toy, objectives, trainer

from potstill.errors import NumericsError
from potstill.policies import RoundRobinPolicy
from potstill.train import DistillModule
from potstill.train.probe import check_probe, reward_of, yardstick_value

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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_probe_that_is_not_finite_names_step_module_and_term(module, value):
    with pytest.raises(NumericsError, match=rf'step 7, module text: the term "hidden\.text" became {value}'):
        check_probe({**AFTER, "hidden.text": value}, module, 7)


def test_a_student_that_is_broken_after_a_round_is_found_by_its_probe(tmp_path):
    t = trainer(tmp_path, policy=RoundRobinPolicy([("image",), ("text",)]), on_nonfinite="skip")
    t.rounds.before_step(0)
    with torch.no_grad():
        t.model.student.text.blocks[0].linear.weight.fill_(float("nan"))
    with pytest.raises(NumericsError, match=r"step 3.*became nan on the probe set"):
        t.rounds.before_step(3)
