import json

import numpy as np
import pytest

from potstill.errors import InputError
from potstill.policies.generator import PolicyGenerator


def test_the_stream_of_a_seed_is_the_same_for_ever():
    # Computed once from the raw PCG64 words of seed 0; a change here makes every saved run resume differently.
    assert PolicyGenerator(0).uniform(3) == [0.6369616873214543, 0.2697867137638703, 0.04097352393619469]
    assert PolicyGenerator(0).normal(2) == pytest.approx([-0.17652525003321792, 0.2877048791369863], rel=1e-12)


def test_normal_numbers_have_mean_zero_unit_variance_and_normal_tails():
    drawn = np.array(PolicyGenerator(1).normal(40000))
    assert abs(drawn.mean()) < 0.02
    assert abs(drawn.var() - 1) < 0.03
    assert abs((np.abs(drawn) > 1.96).mean() - 0.05) < 0.005
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.02


def test_whole_numbers_are_equally_likely_and_below_the_limit():
    generator = PolicyGenerator(2)
    counts = np.bincount([generator.below(5) for _ in range(10000)], minlength=5)
    assert len(counts) == 5
    assert np.abs(counts / 10000 - 0.2).max() < 0.02


def test_a_saved_state_goes_on_where_it_was_after_a_trip_through_json():
    generator = PolicyGenerator(3)
    generator.normal(7)
    state = json.loads(json.dumps(generator.state_dict()))
    expected = generator.normal(5)
    other = PolicyGenerator(99)
    other.load_state_dict(state)
    assert other.normal(5) == expected


@pytest.mark.parametrize(
    "damage", [{"kind": "MT19937"}, {"state": "zz"}, {"state": 5}, {"increment": "-0x1"}, {"state": "0x" + "f" * 40}]
)
def test_a_damaged_state_is_refused_and_changes_nothing(damage):
    generator = PolicyGenerator(3)
    state = generator.state_dict()
    with pytest.raises(InputError, match="random"):
        generator.load_state_dict({**state, **damage})
    with pytest.raises(InputError, match="random"):
        generator.load_state_dict("text")
    assert generator.state_dict() == state
