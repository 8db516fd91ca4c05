import copy
import json
import random

import numpy as np
import pytest
import torch

from potstill.errors import InputError, RecipeError
from potstill.policies import POLICIES, FixedArmPolicy, OptimaPolicy, ThompsonPolicy

ARMS = ["image_encoder", "text_decoder", "multimodal_decoder"]
REWARDS = np.random.default_rng(0).standard_normal(60).tolist()


def go_on(policy, rewards):
    return [policy.update(policy.select(), reward) or policy.history[-1] for reward in rewards]


@pytest.mark.parametrize("stop", [0, 2, 5, 6, 7, 30])
@pytest.mark.parametrize("in_mid_round", [False, True])
@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_loaded_policy_goes_on_bit_for_bit(name, stop, in_mid_round):
    straight = POLICIES.get(name)(ARMS, warmup_rounds=2, seed=5)
    go_on(straight, REWARDS[:stop])
    if in_mid_round:
        straight.select()
    state = json.loads(json.dumps(straight.state_dict()))
    expected = go_on(straight, REWARDS[stop:])

    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(123)
    resumed = POLICIES.get(name)(ARMS, warmup_rounds=2, seed=77)
    go_on(resumed, [9.0, 9.0])
    resumed.load_state_dict(state)
    assert resumed.round == stop
    assert (resumed.pending is not None) == in_mid_round
    assert go_on(resumed, REWARDS[stop:]) == expected
    assert resumed.history == straight.history
    assert resumed.state_dict() == straight.state_dict()


def test_a_saved_state_holds_only_plain_values_and_does_not_follow_the_policy():
    policy = OptimaPolicy(ARMS, warmup_rounds=1)
    go_on(policy, REWARDS[:10])
    state = policy.state_dict()
    kept = copy.deepcopy(state)
    go_on(policy, REWARDS[10:20])
    assert state == kept
    assert json.loads(json.dumps(state, allow_nan=False)) == state


def test_a_loaded_policy_does_not_share_lists_with_the_state():
    source = OptimaPolicy(ARMS)
    go_on(source, REWARDS[:5])
    state = source.state_dict()
    kept = copy.deepcopy(state)
    policy = OptimaPolicy(ARMS)
    policy.load_state_dict(state)
    go_on(policy, REWARDS[5:10])
    assert state == kept


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (OptimaPolicy(ARMS[:2]), "policy.arms"),
        (OptimaPolicy(ARMS[::-1]), "policy.arms"),
        (OptimaPolicy(ARMS, gamma=0.9), "policy.gamma"),
        (OptimaPolicy(ARMS, warmup_rounds=3), "policy.warmup_rounds"),
        (OptimaPolicy(ARMS, noise_std=1.0), "policy.noise_std"),
        (OptimaPolicy(ARMS, min_count=0.1), "policy.min_count"),
        (ThompsonPolicy(ARMS), "policy.name"),
    ],
)
def test_a_state_of_another_policy_is_refused_by_field_and_changes_nothing(other, field):
    policy = OptimaPolicy(ARMS)
    go_on(policy, REWARDS[:4])
    before = policy.state_dict()
    with pytest.raises(RecipeError, match=field):
        policy.load_state_dict(other.state_dict())
    assert policy.state_dict() == before


def test_a_state_of_another_fixed_arm_is_refused():
    with pytest.raises(RecipeError, match=r"policy\.arm:.*expected 0.*got 1"):
        FixedArmPolicy(ARMS, arm=0).load_state_dict(FixedArmPolicy(ARMS, arm=1).state_dict())


@pytest.mark.parametrize(
    "field",
    ["version", "policy", "arms", "settings", "seed", "round", "pending", "count", "sum", "sumsq", "history", "random"],
)
def test_a_state_without_a_field_is_refused_by_name(field):
    policy = OptimaPolicy(ARMS)
    state = policy.state_dict()
    del state[field]
    with pytest.raises(InputError, match=f"policy.{field}"):
        policy.load_state_dict(state)


@pytest.mark.parametrize(
    ("damage", "field"),
    [
        ({"version": 2}, "version"),
        ({"settings": None}, "settings"),
        ({"settings": {}}, "gamma"),
        ({"count": [1.0, 2.0]}, "count"),
        ({"count": [1.0, -2.0, 0.0]}, "count"),
        ({"sum": [1.0, float("nan"), 0.0]}, "sum"),
        ({"sumsq": "none"}, "sumsq"),
        ({"round": 3}, "round"),
        ({"pending": 3}, "pending"),
        ({"pending": True}, "pending"),
        ({"history": None}, "history"),
        ({"history": [[1, 0]]}, r"history\[0\]"),
        ({"history": [[1, 0, 0.5], [3, 1, 0.5]]}, r"history\[1\]"),
        ({"history": [[1, 7, 0.5]]}, r"history\[0\]"),
        ({"history": [[1, 0, float("inf")]]}, r"history\[0\]"),
        ({"seed": "x"}, "seed"),
        ({"random": {}}, "policy.random"),
    ],
)
def test_a_damaged_state_is_refused_by_name_and_changes_nothing(damage, field):
    policy = OptimaPolicy(ARMS)
    go_on(policy, REWARDS[:2])
    before = policy.state_dict()
    with pytest.raises(InputError, match=field):
        policy.load_state_dict({**before, **damage})
    assert policy.state_dict() == before


def test_something_that_is_no_state_is_refused():
    with pytest.raises(InputError, match="missing"):
        OptimaPolicy(ARMS).load_state_dict(None)
