"""skew_kl and skew_reverse_kl: hand values, parity, bounds, ends, errors."""

import math

import loss_references as ref
import pytest
import torch

from potstill.errors import InputError
from potstill.losses import kd_kl, reverse_kl, skew_kl, skew_reverse_kl

TEACHER, STUDENT = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
both = pytest.mark.parametrize("loss", [skew_kl, skew_reverse_kl])


def plain(loss, student, teacher, alpha=0.1, temperature=1.0):
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    own, other = (p, q) if loss is skew_kl else (q, p)
    return (own * (own / (alpha * own + (1 - alpha) * other)).log()).sum(-1).mean()


def pair(*shape, seed=0, scale=2.0):
    draws = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(*shape, generator=draws, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize(("loss", "value"), [(skew_kl, 0.107043), (skew_reverse_kl, 0.113137)])
def test_hand_values_of_three_to_one_against_even(loss, value):
    assert loss(STUDENT, TEACHER).item() == pytest.approx(value, abs=5e-7)


@both
@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_value_and_gradient_equal_the_plain_reading(loss, alpha, temperature):
    student, teacher = pair(5, 9)
    exact, exact_grad = ref.gradient(lambda s: plain(loss, s, teacher, alpha, temperature), student)
    value, grad = ref.gradient(lambda s: loss(s, teacher, alpha=alpha, temperature=temperature), student)
    torch.testing.assert_close(value, exact)
    torch.testing.assert_close(grad, exact_grad)


@both
def test_no_skew_is_the_plain_divergence(loss):
    student, teacher = pair(4, 6)
    other = kd_kl if loss is skew_kl else reverse_kl
    torch.testing.assert_close(loss(student, teacher, alpha=0), other(student, teacher))


@both
def test_no_word_costs_more_than_minus_log_alpha(loss):
    student, teacher = torch.tensor([[400.0, 0.0]]), torch.tensor([[0.0, 400.0]])
    for alpha in (0.1, 0.3):
        assert loss(student, teacher, alpha=alpha).item() == pytest.approx(-math.log(alpha))


@both
def test_a_word_banned_in_both_models_changes_nothing(loss):
    student, teacher = pair(4, 6)
    wall = torch.full((4, 1), -torch.inf, dtype=torch.float64)
    value, grad = ref.gradient(lambda s: loss(s, torch.cat([teacher, wall], -1)), torch.cat([student, wall], -1))
    torch.testing.assert_close(value, loss(student, teacher))
    assert (grad[:, -1] == 0).all()


@both
@pytest.mark.parametrize("alpha", [-0.1, 1.0, math.nan])
def test_a_share_outside_zero_to_one_is_refused(loss, alpha):
    with pytest.raises(InputError, match=r"alpha does not fit; expected a number in \[0, 1\)"):
        loss(STUDENT, TEACHER, alpha=alpha)
