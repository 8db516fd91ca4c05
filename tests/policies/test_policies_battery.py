"""What every policy promises, on random streams of rewards; a policy enters by being registered."""

import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.errors import InputError
from potstill.policies import POLICIES
from potstill.policies.posterior import MAX_REWARD

ARMS = [("image",), ("text",), ("image", "text"), ("fusion",)]

ordinary = st.floats(-1, 1, width=32)
REWARDS = st.one_of(
    st.lists(ordinary, min_size=1, max_size=60),
    st.lists(st.floats(-MAX_REWARD, MAX_REWARD), min_size=1, max_size=60),  # huge, tiny, subnormal, ±0
    st.tuples(ordinary, st.integers(1, 60)).map(lambda pair: [pair[0]] * pair[1]),
    st.tuples(ordinary, st.integers(1, 60)).map(lambda pair: [pair[0] * (-1) ** i for i in range(pair[1])]),
)
SEEDS = st.integers(0, 2**63)

every_policy = pytest.mark.parametrize("name", sorted(POLICIES))
EXAMPLES = settings(max_examples=25)


def make(name, seed=0):
    return POLICIES.get(name)(ARMS, warmup_rounds=1, seed=seed)


def play(policy, rewards):
    for reward in rewards:
        policy.update(policy.select(), reward)
    return [arm for _, arm, _ in policy.history]


@every_policy
@given(rewards=REWARDS, seed=SEEDS)
@EXAMPLES
def test_arms_are_in_range_and_the_posterior_stays_finite(name, rewards, seed):
    policy = make(name, seed)
    assert all(0 <= arm < policy.n_arms for arm in play(policy, rewards))
    for entry in policy.posterior_by_arm().values():
        assert np.isfinite(list(entry.values())).all()
        assert entry["std"] > 0
    json.dumps(policy.state_dict(), allow_nan=False)


@every_policy
@given(rewards=REWARDS, seed=SEEDS, data=st.data())
@EXAMPLES
def test_a_state_saved_anywhere_goes_on_with_the_same_arms(name, rewards, seed, data):
    stop, in_mid_round = data.draw(st.integers(0, len(rewards))), data.draw(st.booleans())
    straight, resumed = make(name, seed), make(name, seed + 1)
    play(straight, rewards[:stop])
    if in_mid_round:
        straight.select()
    resumed.load_state_dict(json.loads(json.dumps(straight.state_dict())))
    assert play(resumed, rewards[stop:]) == play(straight, rewards[stop:])
    assert resumed.state_dict() == straight.state_dict()


@every_policy
@given(rewards=REWARDS, seed=SEEDS, noise=st.integers(0, 2**31))
@EXAMPLES
def test_the_seed_alone_decides_whatever_global_generators_do(name, rewards, seed, noise):
    first = play(make(name, seed), rewards)
    policy = make(name, seed)
    for i, reward in enumerate(rewards):
        for reseed in (random.seed, np.random.seed, torch.manual_seed):
            reseed((noise + i) % 2**32)
        before = random.getstate(), torch.get_rng_state()
        play(policy, [reward])
        assert random.getstate() == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])
    assert [arm for _, arm, _ in policy.history] == first


@every_policy
@given(
    rewards=st.lists(st.floats(-1, 1).filter(lambda r: abs(r) > 1e-3), min_size=8, max_size=60),
    power=st.integers(-8, 8),
)
@EXAMPLES
def test_the_unit_of_the_reward_does_not_matter(name, rewards, power):
    """By a power of two, so that scaling rounds nothing; rewards that are all alike have no scale but the floor's."""
    rewards = [*rewards, 0.5, -0.5, 0.25, -0.25] * 2
    assert play(make(name), rewards[:4] + rewards) == play(make(name), [r * 2.0**power for r in rewards[:4] + rewards])


@every_policy
@given(
    rewards=REWARDS,
    wrong=st.one_of(
        st.sampled_from(
            [float("nan"), float("inf"), -float("inf"), None, "high", torch.ones(2), torch.tensor(torch.nan)]
        ),
        st.floats(min_value=MAX_REWARD, exclude_min=True),
    ),
)
@EXAMPLES
def test_a_reward_that_is_no_finite_number_is_refused_and_changes_nothing(name, rewards, wrong):
    policy = make(name)
    play(policy, rewards)
    arm = policy.select()
    before = policy.state_dict()
    with pytest.raises(InputError, match="reward"):
        policy.update(arm, wrong)
    assert policy.state_dict() == before
    policy.update(arm, 0.0)
