import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.errors import InputError, ShapeError
from potstill.policies import OptimaPolicy, Posterior, discounted_posterior

GAMMAS = st.sampled_from([0.5, 0.9, 0.98, 1.0])
HISTORIES = st.lists(st.tuples(st.integers(0, 3), st.floats(-2, 2, width=32)), max_size=60)


def literal(arms, rewards, n_arms, gamma, noise_std, min_count):
    """The card's formulas written out play by play, sharing no code with the package."""
    t = len(arms)
    count, total, squares = [0.0] * n_arms, [0.0] * n_arms, [0.0] * n_arms
    for j, (arm, reward) in enumerate(zip(arms, rewards), start=1):
        count[arm] += gamma ** (t - j)
        total[arm] += gamma ** (t - j) * reward
        squares[arm] += gamma ** (t - j) * reward**2
    seen = [k for k in range(n_arms) if count[k] >= 1e-12]
    pooled = sum(total) / sum(count) if sum(count) > 0 else 0.0
    mean = [total[k] / count[k] if k in seen else pooled for k in range(n_arms)]
    variance = sum(squares[k] - total[k] ** 2 / count[k] for k in seen) / max(sum(count) - len(seen), 1)
    noise = math.sqrt(max(1e-16, variance)) if noise_std == "auto" else noise_std
    return count, total, squares, mean, [noise / math.sqrt(max(n, min_count)) for n in count], noise


def close(left, right, tolerance=1e-9):
    torch.testing.assert_close(
        torch.as_tensor(left, dtype=torch.float64),
        torch.as_tensor(right, dtype=torch.float64),
        atol=tolerance,
        rtol=tolerance,
    )


def played(policy, plays):
    """Put a history into a policy through its saved state, whatever it would have selected itself."""
    for arm, reward in plays:
        policy.load_state_dict({**policy.state_dict(), "pending": arm})
        policy.update(arm, reward)
    return policy


def test_the_hand_computed_example():
    posterior = discounted_posterior([0, 1, 0], [1.0, 0.5, 3.0], n_arms=2, gamma=0.5, noise_std=1.0)
    assert isinstance(posterior, Posterior)
    close(posterior.count, [1.25, 0.5])
    close(posterior.sum, [3.25, 0.25])
    close(posterior.sumsq, [9.25, 0.125])
    close(posterior.mean, [2.6, 0.5])
    close(posterior.std, [0.894427, 1.414214], tolerance=1e-6)
    assert posterior.noise == 1.0


def test_auto_noise_by_hand():
    # gamma 1: arm 0 has rewards 1 and 3 (spread 2), arm 1 only 5 (spread 0); 3 plays less 2 arms leave 1.
    posterior = discounted_posterior([0, 0, 1], [1.0, 3.0, 5.0], n_arms=2, gamma=1.0)
    assert posterior.noise == pytest.approx(math.sqrt(2.0))
    close(posterior.std, [1.0, math.sqrt(2.0)])


def test_tensors_and_lists_give_the_same_float64_result():
    lists = discounted_posterior([0, 1, 1], [0.5, 1.5, -1.0], 3)
    tensors = discounted_posterior(torch.tensor([0, 1, 1], dtype=torch.int32), torch.tensor([0.5, 1.5, -1.0]), 3)
    for field in ("count", "sum", "sumsq", "mean", "std"):
        assert getattr(lists, field).dtype == torch.float64
        assert getattr(lists, field).shape == (3,)
        assert torch.equal(getattr(lists, field), getattr(tensors, field))
    assert isinstance(lists.noise, float)


def test_rewards_keep_no_graph_and_are_not_changed():
    rewards = torch.tensor([1.0, 2.0], requires_grad=True)
    posterior = discounted_posterior([0, 1], rewards, 2)
    assert not posterior.mean.requires_grad
    assert rewards.tolist() == [1.0, 2.0]


@given(HISTORIES, GAMMAS, st.sampled_from(["auto", 0.3, 1.0]), st.sampled_from([1e-2, 1.0]))
@settings(max_examples=60, deadline=None)
def test_closed_form_and_recursion_both_equal_the_formulas_written_out(plays, gamma, noise_std, min_count):
    arms, rewards = [arm for arm, _ in plays], [reward for _, reward in plays]
    count, total, squares, mean, std, noise = literal(arms, rewards, 4, gamma, noise_std, min_count)
    policy = OptimaPolicy(4, gamma=gamma, noise_std=noise_std, min_count=min_count)
    for posterior in (
        discounted_posterior(arms, rewards, 4, gamma, noise_std, min_count),
        played(policy, plays).posterior(),
    ):
        close(posterior.count, count)
        close(posterior.sum, total)
        close(posterior.sumsq, squares)
        close(posterior.mean, mean)
        # The variance is a difference of near-equal numbers: its root is only as exact as the root of 1e-16.
        close(posterior.std, std, tolerance=3e-7)
        close(posterior.noise, noise, tolerance=3e-8)


def test_recursion_equals_closed_form_after_a_thousand_rounds_of_play():
    policy = OptimaPolicy(3, seed=4)
    noise = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    for reward in noise:
        policy.update(policy.select(), reward)
    _, arms, rewards = zip(*policy.history)
    closed, recursive = discounted_posterior(arms, rewards, 3), policy.posterior()
    for field in ("count", "sum", "sumsq", "mean", "std"):
        close(getattr(recursive, field), getattr(closed, field))
    close(recursive.noise, closed.noise)


@given(st.lists(st.integers(0, 2), max_size=80), st.sampled_from([0.5, 0.9, 0.98]))
@settings(max_examples=40, deadline=None)
def test_counts_add_up_to_the_geometric_sum(arms, gamma):
    posterior = discounted_posterior(arms, [1.0] * len(arms), 3, gamma)
    assert float(posterior.count.sum()) == pytest.approx((1 - gamma ** len(arms)) / (1 - gamma), abs=1e-9)


def test_without_discount_and_with_unit_noise_it_is_plain_gaussian_thompson_sampling():
    posterior = discounted_posterior([0, 0, 1, 0, 1], [1.0, 2.0, 5.0, 6.0, 7.0], 2, gamma=1.0, noise_std=1.0)
    close(posterior.count, [3, 2])
    close(posterior.mean, [3, 6])
    close(posterior.std, [1 / math.sqrt(3), 1 / math.sqrt(2)])


@given(
    st.lists(st.floats(-2, 2, width=32), min_size=12, max_size=40),
    st.floats(0.01, 100),
    GAMMAS,
)
@settings(max_examples=40, deadline=None)
def test_scaling_rewards_scales_mean_and_std_under_auto_noise(rewards, factor, gamma):
    arms = [index % 3 for index in range(len(rewards))]
    plain = discounted_posterior(arms, rewards, 3, gamma)
    scaled = discounted_posterior(arms, [factor * reward for reward in rewards], 3, gamma)
    close(scaled.mean, factor * plain.mean, tolerance=1e-7)
    close(scaled.std, factor * plain.std, tolerance=1e-5)


def test_shifting_rewards_shifts_means_and_leaves_std():
    generator = torch.Generator().manual_seed(1)
    arms = torch.randint(0, 3, (200,), generator=generator)
    rewards = torch.randn(200, generator=generator)
    for gamma in (0.9, 0.98, 1.0):
        plain = discounted_posterior(arms, rewards, 3, gamma)
        shifted = discounted_posterior(arms, rewards.double() + 7.0, 3, gamma)
        close(shifted.mean, plain.mean + 7.0)
        close(shifted.std, plain.std)
        close(shifted.noise, plain.noise)


def test_a_neglected_arm_becomes_less_certain_each_round_up_to_a_limit():
    gamma, before = 0.9, None
    for rounds in range(0, 80, 1):
        posterior = discounted_posterior([0] + [1] * rounds, [1.0] * (rounds + 1), 2, gamma=gamma, noise_std=2.0)
        std = float(posterior.std[0])
        if gamma**rounds > 1e-2:
            assert std == pytest.approx(2.0 * gamma ** (-rounds / 2))
            assert before is None or std / before == pytest.approx(gamma**-0.5)
        else:
            assert std == pytest.approx(2.0 / math.sqrt(1e-2))
        before = std


def test_an_unseen_arm_has_the_pooled_mean_and_the_largest_std():
    posterior = discounted_posterior([0, 1], [1.0, 3.0], 3, gamma=1.0, noise_std=1.0)
    close(posterior.mean, [1.0, 3.0, 2.0])
    close(posterior.std, [1.0, 1.0, 10.0])


def test_an_arm_forgotten_beyond_recall_has_the_pooled_mean():
    posterior = discounted_posterior([0] + [1] * 60, [100.0] + [1.0] * 60, 2, gamma=0.5, noise_std=1.0)
    assert posterior.count[0] < 1e-12
    close(posterior.mean, [1.0, 1.0])


def test_an_empty_history_has_mean_zero_and_the_smallest_noise():
    posterior = discounted_posterior([], [], 3)
    close(posterior.mean, [0.0] * 3, tolerance=0)
    close(posterior.count, [0.0] * 3, tolerance=0)
    assert posterior.noise == pytest.approx(1e-8, rel=1e-12)
    assert torch.equal(OptimaPolicy(3).posterior().std, posterior.std)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 0.0}, "gamma"),
        ({"gamma": 1.01}, "gamma"),
        ({"gamma": float("nan")}, "gamma"),
        ({"gamma": "0.9"}, "gamma"),
        ({"noise_std": 0.0}, "noise_std"),
        ({"noise_std": float("inf")}, "noise_std"),
        ({"noise_std": "automatic"}, "noise_std"),
        ({"min_count": 0.0}, "min_count"),
        ({"n_arms": 0}, "n_arms"),
        ({"arms": [0, 2, 1]}, r"arms\[1\]: no such arm; expected 0 to 1; got 2"),
        ({"arms": [0, -1, 1]}, r"arms\[1\]: no such arm"),
        ({"arms": [0.0, 1.0, 0.0]}, "arms are not whole numbers"),
        ({"rewards": [1.0, float("nan"), 0.0]}, r"rewards\[1\].*nan"),
        ({"rewards": [1.0, 0.0, float("-inf")]}, r"rewards\[2\]"),
        ({"rewards": [1.0, 0.0, 1e200]}, r"rewards\[2\]"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(change, message):
    with pytest.raises(InputError, match=message):
        discounted_posterior(**{"arms": [0, 1, 0], "rewards": [1.0, 0.5, 3.0], "n_arms": 2, **change})


@pytest.mark.parametrize(("arms", "rewards"), [([0, 1], [1.0]), ([[0, 1]], [[1.0, 2.0]]), (0, 1.0)])
def test_histories_of_different_shape_are_refused(arms, rewards):
    with pytest.raises(ShapeError):
        discounted_posterior(arms, rewards, 2)
