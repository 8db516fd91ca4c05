import pytest
import torch

from potstill.errors import InputError, RecipeError
from potstill.policies import (
    POLICIES,
    AllModulesPolicy,
    FixedArmPolicy,
    GreedyPolicy,
    OptimaPolicy,
    RoundRobinPolicy,
    ThompsonPolicy,
    UniformPolicy,
    discounted_posterior,
)

ARMS = ["image_encoder", "text_decoder", "multimodal_decoder"]


def play(policy, rewards):
    for reward in rewards:
        policy.update(policy.select(), reward)
    return [arm for _, arm, _ in policy.history]


def test_every_registered_name_is_its_policy():
    assert {name: POLICIES.get(name) for name in POLICIES} == {
        "all": AllModulesPolicy,
        "fixed": FixedArmPolicy,
        "greedy": GreedyPolicy,
        "optima": OptimaPolicy,
        "round_robin": RoundRobinPolicy,
        "thompson": ThompsonPolicy,
        "uniform": UniformPolicy,
    }
    assert all(POLICIES.get(name).name == name for name in POLICIES)


def test_an_unknown_policy_is_refused_with_the_nearest_name():
    with pytest.raises(RecipeError, match='Did you mean "optima"'):
        POLICIES.get("optma")


@pytest.mark.parametrize("name", sorted(POLICIES))
@pytest.mark.filterwarnings("ignore:.*forgets nothing")
def test_every_policy_takes_the_same_options_keeps_history_and_has_a_posterior(name):
    policy = POLICIES.get(name)(ARMS, gamma=0.9, warmup_rounds=2, noise_std="auto", seed=1, min_count=0.1)
    rewards = torch.randn(25, generator=torch.Generator().manual_seed(0)).double().tolist()
    arms = play(policy, rewards)
    assert policy.round == len(policy.history) == 25
    assert all(0 <= arm < policy.n_arms for arm in arms)
    expected = discounted_posterior(arms, rewards, policy.n_arms, gamma=policy.gamma, min_count=0.1)
    torch.testing.assert_close(policy.posterior().mean, expected.mean)
    torch.testing.assert_close(policy.posterior().std, expected.std)
    assert set(policy.posterior_by_arm()) == set(policy.arm_names)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_refuses_a_wrong_update_and_wrong_options(name):
    policy = POLICIES.get(name)(ARMS)
    arm = policy.select()
    with pytest.raises(InputError, match="arm"):
        policy.update(arm + 1, 0.0)
    with pytest.raises(InputError, match="reward"):
        policy.update(arm, float("nan"))
    for option, value in [("gamma", 0), ("warmup_rounds", 0), ("noise_std", 0), ("min_count", 0), ("seed", -1)]:
        with pytest.raises(InputError, match=option):
            POLICIES.get(name)(ARMS, **{option: value})
    with pytest.raises(InputError, match="no arm"):
        POLICIES.get(name)([])


def test_uniform_plays_every_arm_about_as_often_whatever_the_rewards():
    policy = UniformPolicy(ARMS, seed=3)
    arms = play(policy, [1.0] * 3000)
    assert max(abs(arms.count(index) / 3000 - 1 / 3) for index in range(3)) < 0.03
    assert arms == play(UniformPolicy(ARMS, seed=3), [-5.0] * 3000)
    assert arms != play(UniformPolicy(ARMS, seed=4), [1.0] * 3000)


def test_round_robin_plays_in_turn_for_ever():
    assert play(RoundRobinPolicy(ARMS), [0.0] * 8) == [0, 1, 2, 0, 1, 2, 0, 1]


@pytest.mark.parametrize("arm", [1, "text_decoder+multimodal_decoder", ("multimodal_decoder", "text_decoder")])
def test_a_fixed_arm_is_found_by_index_name_or_modules(arm):
    policy = FixedArmPolicy([ARMS[0], ARMS[1:]], arm=arm)
    assert policy.arm == 1
    assert play(policy, [0.0, 1.0, -1.0]) == [1, 1, 1]


@pytest.mark.parametrize("arm", ["text_decode", 3, -1, ("image_encoder", "text_decoder")])
def test_a_fixed_arm_that_does_not_exist_is_refused(arm):
    with pytest.raises(RecipeError, match="arm"):
        FixedArmPolicy(ARMS, arm=arm)


def test_a_fixed_arm_of_the_wrong_type_is_refused():
    with pytest.raises(InputError, match="an index or a name"):
        FixedArmPolicy(ARMS, arm=1.0)


@pytest.mark.parametrize("arms", [ARMS, [tuple(ARMS)], [("image_encoder",), ("text_decoder",), tuple(ARMS)]])
def test_all_modules_has_one_arm_that_holds_each_module_once(arms):
    policy = AllModulesPolicy(arms)
    assert policy.arms == [tuple(ARMS)]
    assert play(policy, [0.0, 1.0]) == [0, 0]


def test_greedy_plays_the_best_plain_mean_after_its_warm_up():
    policy = GreedyPolicy(3, warmup_rounds=2)
    assert play(policy, [0.0, 1.0, 0.5] * 2)[-3:] == [0, 1, 2]
    assert policy.select() == 1
    policy.update(1, -3.0)  # mean of arm 1 falls to -1/3
    assert policy.select() == 2
    policy.update(2, -9.0)
    assert policy.select() == 0


def test_greedy_takes_the_lowest_index_among_equals():
    assert play(GreedyPolicy(3, warmup_rounds=1), [1.0] * 6)[3:] == [0, 0, 0]


def test_greedy_does_not_forget():
    policy = GreedyPolicy(2, warmup_rounds=1)
    # 1 and then 199 times 0.5 against 0.6: a policy that forgets would leave arm 0 as soon as its mean seems 0.5.
    play(policy, [1.0, 0.6] + [0.7] * 198)
    assert policy.history[-1][1] == 0
    assert float(policy.posterior().count[0]) == 199.0


def test_thompson_is_optima_without_discount():
    rewards = torch.randn(200, generator=torch.Generator().manual_seed(0)).tolist()
    thompson, optima = ThompsonPolicy(3, seed=7), OptimaPolicy(3, gamma=1.0, seed=7)
    assert play(thompson, rewards) == play(optima, rewards)
    assert torch.equal(thompson.posterior().std, optima.posterior().std)
    assert float(thompson.posterior().count.sum()) == 200.0


@pytest.mark.parametrize("kind", [ThompsonPolicy, GreedyPolicy])
def test_a_discount_for_a_policy_that_forgets_nothing_warns_and_does_not_act(kind, recwarn):
    assert kind(3).gamma == 1.0
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"forgets nothing: gamma=0\.9"):
        assert kind(3, gamma=0.9).gamma == 1.0


def test_settings_tell_what_is_in_force():
    assert OptimaPolicy(2).settings() == {
        "gamma": 0.98,
        "noise_std": "auto",
        "min_count": 0.01,
        "warmup_rounds": 10,
    }
    assert "warmup_rounds" not in UniformPolicy(2).settings()
    assert FixedArmPolicy(ARMS, "text_decoder").settings()["arm"] == 1
