import random

import numpy as np
import pytest
import torch

from potstill.errors import InputError
from potstill.policies import OptimaPolicy, ThompsonPolicy


def play(policy, rewards):
    for reward in rewards:
        policy.update(policy.select(), reward)
    return [arm for _, arm, _ in policy.history]


def noise(rounds, seed=0):
    return np.random.default_rng(seed).standard_normal(rounds).tolist()


def test_each_arm_is_first_played_in_turn_the_given_number_of_times():
    arms = play(OptimaPolicy(3, warmup_rounds=4), noise(12))
    assert arms == [0, 1, 2] * 4


def test_after_the_warm_up_an_arm_is_drawn():
    arms = play(OptimaPolicy(3, warmup_rounds=1, seed=1), noise(60))
    assert arms[3:] != [index % 3 for index in range(3, 60)]
    assert set(arms[3:]) == {0, 1, 2}


def test_the_arm_that_pays_is_played_most():
    policy = OptimaPolicy(3, warmup_rounds=2)
    disturbance = noise(300)
    for round_noise in disturbance:
        arm = policy.select()
        policy.update(arm, (1.0 if arm == 2 else 0.0) + 0.1 * round_noise)
    late = [arm for _, arm, _ in policy.history[100:]]
    assert late.count(2) > 0.8 * len(late)


def test_draws_follow_the_posterior():
    # Two arms with means 0 and 1 and std 1 each: P(x_0 > x_1) = Phi(-1/sqrt(2)) = 0.2398.
    policy = OptimaPolicy(2, gamma=1.0, warmup_rounds=1, noise_std=1.0)
    policy.update(policy.select(), 0.0)
    policy.update(policy.select(), 1.0)
    state, picks = policy.state_dict(), []
    for _ in range(4000):
        policy.load_state_dict({**state, "random": policy.state_dict()["random"]})
        picks.append(policy.select())
    assert picks.count(0) / 4000 == pytest.approx(0.2398, abs=0.025)  # 3.7 standard errors


def test_equal_draws_go_to_the_lowest_index():
    policy = OptimaPolicy(4, warmup_rounds=1, noise_std=1e-300)
    # With a std far below the spacing of the numbers around 1, every draw is exactly its mean.
    arms = play(policy, [0.5, 1.0, 1.0, 1.0] + [1.0] * 6)
    assert arms[4:] == [1] * 6


def test_selecting_twice_gives_the_pending_arm_and_draws_nothing():
    once, twice = OptimaPolicy(3, warmup_rounds=1, seed=3), OptimaPolicy(3, warmup_rounds=1, seed=3)
    for reward in noise(80):
        arm = once.select()
        assert [twice.select() for _ in range(3)] == [arm] * 3
        assert twice.pending == arm
        once.update(arm, reward)
        twice.update(arm, reward)
        assert twice.pending is None


def test_the_seed_alone_decides_and_global_seeds_do_not():
    rewards = noise(100)
    first = play(OptimaPolicy(3, warmup_rounds=2, seed=5), rewards)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    policy, again = OptimaPolicy(3, warmup_rounds=2, seed=5), []
    for index, reward in enumerate(rewards):
        random.seed(index)
        np.random.seed(index)
        torch.manual_seed(index)
        again += play(policy, [reward])[-1:]
    assert first == again
    assert first != play(OptimaPolicy(3, warmup_rounds=2, seed=6), rewards)


def test_playing_leaves_the_global_generators_alone():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    play(OptimaPolicy(3, warmup_rounds=1), noise(30))
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize("factor", [1e-6, 0.37, 1000.0])
@pytest.mark.parametrize("kind", [OptimaPolicy, ThompsonPolicy])
def test_scaled_rewards_give_the_same_arms_under_auto_noise(kind, factor):
    rewards = noise(400, seed=2)
    plain, scaled = kind(3, seed=1), kind(3, seed=1)
    assert play(plain, rewards) == play(scaled, [factor * reward for reward in rewards])
    torch.testing.assert_close(scaled.posterior().mean, factor * plain.posterior().mean)
    torch.testing.assert_close(scaled.posterior().std, factor * plain.posterior().std)


def test_shifted_rewards_give_the_same_arms_under_auto_noise():
    rewards = noise(400, seed=2)
    assert play(OptimaPolicy(3, seed=1), rewards) == play(OptimaPolicy(3, seed=1), [r + 3.0 for r in rewards])


def test_an_arm_that_lost_its_count_is_tried_again():
    policy = OptimaPolicy(2, gamma=0.9, warmup_rounds=1, noise_std=0.3)
    for _ in range(400):
        arm = policy.select()
        policy.update(arm, 1.0 if arm == 0 else 0.0)
    tried = [number for number, arm, _ in policy.history if arm == 1]
    assert max(tried) > 200
    assert len(tried) < 200


def test_one_arm_is_legal_and_always_played():
    assert play(OptimaPolicy(["only"], warmup_rounds=2), noise(20)) == [0] * 20


def test_history_and_round_count_finished_rounds_from_one():
    policy = OptimaPolicy(2)
    assert (policy.round, policy.history) == (0, [])
    policy.select()
    assert policy.round == 0
    policy.update(0, torch.tensor(0.5))
    policy.update(policy.select(), np.float32(0.25))
    assert policy.history == [(1, 0, 0.5), (2, 1, 0.25)]
    assert policy.round == 2


def test_the_posterior_can_be_logged_by_arm_name():
    policy = OptimaPolicy(["a", ("b", "c")], noise_std=1.0)
    policy.update(policy.select(), 2.0)
    assert policy.posterior_by_arm() == {
        "a": {"mean": 2.0, "std": 1.0, "count": 1.0},
        "b+c": {"mean": 2.0, "std": pytest.approx(10.0), "count": 0.0},
    }


def test_an_arm_may_be_given_as_any_integer_type():
    policy = OptimaPolicy(2)
    policy.select()
    policy.update(np.int64(0), 1.0)
    policy.select()
    policy.update(torch.tensor(1), 1.0)
    assert [arm for _, arm, _ in policy.history] == [0, 1]


@pytest.mark.parametrize(
    ("arm", "reward", "message"),
    [
        (1, 0.5, "another arm was selected; expected 0; got 1"),
        (3, 0.5, "no such arm; expected 0 to 2; got 3"),
        (-1, 0.5, "no such arm"),
        (0.0, 0.5, "not a whole number"),
        (True, 0.5, "not a whole number"),
        (None, 0.5, "not a whole number"),
        (0, float("nan"), "reward.*nan.*probe set"),
        (0, float("inf"), "reward"),
        (0, 1e200, "reward"),
        (0, "high", "reward"),
        (0, None, "reward"),
    ],
)
def test_a_wrong_update_is_refused_and_changes_nothing(arm, reward, message):
    policy = OptimaPolicy(3)
    policy.select()
    before = policy.state_dict()
    with pytest.raises(InputError, match=message):
        policy.update(arm, reward)
    assert policy.state_dict() == before
    policy.update(0, 0.5)
    assert policy.round == 1


def test_an_update_without_a_selected_arm_is_refused():
    policy = OptimaPolicy(2)
    with pytest.raises(InputError, match="select"):
        policy.update(0, 0.5)
    policy.update(policy.select(), 0.5)
    with pytest.raises(InputError, match="select"):
        policy.update(0, 0.5)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("gamma", 0.0),
        ("gamma", -0.5),
        ("gamma", 1.5),
        ("gamma", float("nan")),
        ("warmup_rounds", 0),
        ("warmup_rounds", 2.5),
        ("noise_std", -1.0),
        ("noise_std", "none"),
        ("min_count", 0.0),
        ("seed", -1),
        ("seed", 0.5),
        ("seed", "zero"),
    ],
)
def test_options_outside_their_range_are_refused_by_name(option, value):
    with pytest.raises(InputError, match=option):
        OptimaPolicy(2, **{option: value})
    with pytest.raises(ValueError, match=option):
        OptimaPolicy(2, **{option: value})
