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
    assert set(potstill.policies._FILES) | {"POLICIES"} == set(potstill.policies.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="OptimusPolicy"):
        _ = potstill.policies.OptimusPolicy


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
