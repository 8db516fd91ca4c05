import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.errors import InputError, ShapeError
from potstill.losses import minillm_returns, teacher_mixed_probs


def test_hand_values_of_three_rewards():
    returns = minillm_returns(torch.tensor([[1.0, 2.0, 3.0]]), torch.ones(1, 3, dtype=torch.bool), gamma=1.0)
    assert returns.raw.tolist() == [[6, 5, 3]]
    assert returns.normalised.tolist() == [[2, 2.5, 3]]
    assert returns.future_only.tolist() == [[2.5, 3, 0]]
    raw, normalised, future_only = returns
    assert raw is returns.raw
    assert normalised is returns.normalised
    assert future_only is returns.future_only


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-9, 9), st.booleans()), min_size=1, max_size=9), st.sampled_from([0, 0.5, 0.9, 1]))
def test_returns_equal_sums_written_out(steps, gamma):
    rewards = torch.tensor([r for r, _ in steps], dtype=torch.float64)
    mask = torch.tensor([kept for _, kept in steps])
    got = minillm_returns(rewards, mask, gamma)
    T = len(steps)
    for t in range(T):
        later = [k for k in range(t, T) if mask[k]]
        after = [k for k in later if k > t]
        raw = sum(gamma ** (k - t) * rewards[k].item() for k in later)
        future = sum(gamma ** (k - t) * rewards[k].item() for k in after)
        expected = (raw, raw / len(later), future / max(1, len(after))) if mask[t] else (0, 0, 0)
        assert [part[t].item() for part in got] == pytest.approx(expected, abs=1e-9)


def test_prompt_and_padding_count_for_nothing_and_may_hold_nan():
    rewards = torch.tensor([[torch.nan, 1.0, 2.0, 3.0, torch.inf, torch.nan]])
    mask = torch.tensor([[False, True, True, True, False, False]])
    returns = minillm_returns(rewards, mask)
    assert returns.raw.tolist() == [[0, 6, 5, 3, 0, 0]]
    assert returns.normalised.tolist() == [[0, 2, 2.5, 3, 0, 0]]
    assert returns.future_only.tolist() == [[0, 2.5, 3, 0, 0, 0]]


def test_returns_carry_no_graph_and_are_float32_at_least():
    rewards = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    for part in minillm_returns(rewards):
        assert not part.requires_grad
        assert part.dtype == torch.float32
    assert minillm_returns(rewards.double()).raw.dtype == torch.float64


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 3, 4), (5,)])
def test_any_leading_shape_and_empty_answers_are_legal(shape):
    assert all(part.shape == shape for part in minillm_returns(torch.zeros(shape)))


def test_wrong_rewards_are_refused():
    with pytest.raises(ShapeError, match="mask does not fit"):
        minillm_returns(torch.zeros(2, 3), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(InputError, match="mask is not bool"):
        minillm_returns(torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(InputError, match="gamma"):
        minillm_returns(torch.zeros(2, 3), gamma=1.5)
    with pytest.raises(ShapeError, match="time axis"):
        minillm_returns(torch.tensor(1.0))
    with pytest.raises(InputError, match="floating point"):
        minillm_returns(torch.ones(2, dtype=torch.long))


def test_the_mixture_has_the_stated_shares():
    teacher, student = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
    assert teacher_mixed_probs(student, teacher, 0.2)[0].tolist() == pytest.approx([0.55, 0.45], abs=1e-6)
    assert teacher_mixed_probs(student, teacher, alpha=1.0)[0].tolist() == pytest.approx([0.75, 0.25], abs=1e-6)
    assert teacher_mixed_probs(student, teacher, alpha=0.0)[0].tolist() == pytest.approx([0.5, 0.5], abs=1e-6)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 4.0])
def test_the_mixture_is_a_distribution_without_gradient_to_the_teacher(temperature):
    draws = torch.Generator().manual_seed(0)
    student, teacher = (100 * torch.randn(3, 4, 7, generator=draws) for _ in range(2))
    student.requires_grad_()
    teacher.requires_grad_()
    mixed = teacher_mixed_probs(student, teacher, 0.3, temperature=temperature)
    torch.testing.assert_close(mixed.sum(-1), torch.ones(3, 4))
    expected = 0.3 * (teacher / temperature).softmax(-1) + 0.7 * (student / temperature).softmax(-1)
    torch.testing.assert_close(mixed, expected)
    mixed[..., 0].sum().backward()
    assert teacher.grad is None
    assert torch.isfinite(student.grad).all()


def test_wrong_mixtures_are_refused():
    with pytest.raises(InputError, match="alpha"):
        teacher_mixed_probs(torch.zeros(2, 3), torch.zeros(2, 3), alpha=-0.1)
    with pytest.raises(ShapeError, match="student has 3 classes, teacher 4"):
        teacher_mixed_probs(torch.zeros(2, 3), torch.zeros(2, 4))
    assert teacher_mixed_probs(torch.zeros(2, 3), torch.zeros(2, 4), shared_vocab=2)[0].tolist() == [0.5, 0.5]
