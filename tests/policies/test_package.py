import doctest
import importlib
import subprocess
import sys

import pytest

import potstill.policies


def test_every_public_name_exists_and_is_listed_once():
    names = potstill.policies.__all__
    assert len(set(names)) == len(names)
    for name in names:
        assert getattr(potstill.policies, name) is not None
        assert name in dir(potstill.policies)


def test_every_file_of_a_public_name_is_known_to_the_lazy_table():
    assert set(potstill.policies._HOMES) == set(potstill.policies.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="OptimusPolicy"):
        _ = potstill.policies.OptimusPolicy


@pytest.mark.parametrize("file", ["arms", "optima", "posterior", "reward"])
def test_the_examples_in_the_docstrings_run(file):
    failed, tried = doctest.testmod(importlib.import_module(f"potstill.policies.{file}"))
    assert tried > 0
    assert failed == 0


def test_a_policy_of_ones_own_says_only_how_to_choose():
    class LastFirstPolicy(potstill.policies.Policy):
        name = "last_first"

        def _choose(self):
            return self.n_arms - 1 - self.round % self.n_arms

    policy, resumed = LastFirstPolicy(3), LastFirstPolicy(3)
    for _ in range(4):
        policy.update(policy.select(), 1.0)
    assert [arm for _, arm, _ in policy.history] == [2, 1, 0, 2]
    resumed.load_state_dict(policy.state_dict())
    assert resumed.select() == 1


def test_choosing_an_arm_does_not_import_torch():
    code = (
        "import sys; from potstill.policies import POLICIES, loss_decrement_reward\n"
        "for name in POLICIES:\n"
        "    policy = POLICIES.get(name)(3, warmup_rounds=1)\n"
        "    for _ in range(5): policy.update(policy.select(), loss_decrement_reward(2.0, 1.0))\n"
        "    policy.load_state_dict(policy.state_dict()); policy.posterior_by_arm()\n"
        "assert 'torch' not in sys.modules and len(list(POLICIES)) == 7"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
