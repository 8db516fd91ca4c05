"""How exact every loss is in half precision and float32, against float64 on the same rounded inputs.

The bounds are promises of ``docs/numerics.md``; ``benchmarks/loss_numerics.py`` measures how far below them we stay.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import CASES, REGIMES, errors, value_and_gradient

# Half a unit in the last place of the gradient's own type. Where a student's tensor enters twice its two gradients are
# each rounded once, hence the 2 below.
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
# Of float32 statistics, relative: two distributions 2 % apart leave five of seven digits of their difference.
STATISTICS = 1e-4
# Absolute, over the temperature: what is saturated or below the smallest float16 (6e-8) has no digits left to be right.
FLOOR = 1e-6

EXAMPLES = settings(max_examples=10)
draws = {"seed": st.integers(0, 2**31), "dtype": st.sampled_from(list(ROUNDING))}


def gradient_bound(dtype, exact, temperature=1.0):
    return (2 * ROUNDING[dtype] + STATISTICS) * exact + FLOOR / min(temperature, 1.0)


def value_bound(exact):
    return STATISTICS * exact + FLOOR


def within(found, dtype, temperature, gradient=True):
    assert found.value <= value_bound(found.exact_value), found
    if gradient:
        assert found.gradient <= gradient_bound(dtype, found.exact_gradient, temperature), found


every_loss = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_loss_of_logits = pytest.mark.parametrize(
    "case", [case for case in CASES if case.compares_logits], ids=lambda case: case.name
)


def rounded(case, regime, seed, dtype):
    return [x.to(dtype) for x in REGIMES[regime](case, 6, seed)]


@every_loss
@pytest.mark.parametrize("regime", REGIMES)
@given(**draws)
@EXAMPLES
def test_value_and_gradient_stay_within_the_bound(case, regime, seed, dtype):
    student, teacher = rounded(case, regime, seed, dtype)
    within(errors(case, student, teacher), dtype, 1.0, case.has_gradient(regime))


@every_loss_of_logits
@pytest.mark.parametrize("regime", REGIMES)
@given(**draws)
@EXAMPLES
def test_a_temperature_of_a_twentieth_stays_within_the_bound(case, regime, seed, dtype):
    student, teacher = rounded(case, regime, seed, dtype)
    found = errors(case, student, teacher, temperature=0.05)
    within(found, dtype, 0.05, case.has_gradient(regime, 0.05))


@every_loss
@given(**draws)
@EXAMPLES
def test_masks_with_rubbish_behind_them_stay_within_the_bound(case, seed, dtype):
    student, teacher = rounded(case, "apart", seed, dtype)
    mask = case.mask_for(6, seed)
    mask[:2] = True  # some losses refuse a single row
    junk = [torch.nan, torch.inf, -torch.inf][seed % 3]
    student, teacher = (x.masked_fill(~case.spread(mask, x), junk) for x in (student, teacher))
    found = errors(case, student, teacher, mask)
    within(found, dtype, 1.0)


@every_loss
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_values_are_float32_and_gradients_of_the_type_of_the_input(case, dtype):
    value, grad = value_and_gradient(case, *rounded(case, "apart", 0, dtype))
    assert value.dtype == torch.float32
    assert grad.dtype == dtype


@pytest.mark.parametrize("case", [c for c in CASES if not c.refuses_an_empty_mask], ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_nothing_to_count_costs_nothing_in_any_precision(case, dtype):
    student, teacher = rounded(case, "apart", 0, dtype)
    mask = torch.zeros(6, *case.mask, dtype=torch.bool)
    value, grad = value_and_gradient(case, torch.full_like(student, torch.nan), teacher, mask)
    assert value == 0
    assert (grad == 0).all()


@pytest.mark.parametrize("case", [c for c in CASES if not (c.has_kink or c.loses_digits)], ids=lambda case: case.name)
@given(seed=st.integers(0, 2**31))
@EXAMPLES
def test_a_student_almost_equal_to_the_teacher_keeps_the_digits_of_its_small_value(case, seed):
    """A plain sum of p log(p / q) is wrong in its first digits here, and sometimes below 0."""
    noise = torch.randn(6, *case.teacher, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    teacher = REGIMES["apart"](case, 6, seed)[1].float()
    student = case.moved(teacher, (1e-3 * noise).exp()).float()
    value, _ = value_and_gradient(case, student, teacher, **case.whole_rows(student))
    exact, _ = value_and_gradient(case, student.double(), teacher.double(), **case.whole_rows(student))
    assert value > 0
    torch.testing.assert_close(value.double(), exact, rtol=2e-3, atol=1e-12)


@every_loss
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_equal_models_have_a_finite_gradient(case, dtype):
    _, teacher = rounded(case, "apart", 1, dtype)
    value, grad = value_and_gradient(case, teacher, teacher)
    assert torch.isfinite(value)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("case", [c for c in CASES if c.compares_logits and c.reductions], ids=lambda case: case.name)
@given(**draws)
@EXAMPLES
def test_a_class_banned_in_both_models_changes_nothing(case, seed, dtype):
    student, teacher = rounded(case, "apart", seed, dtype)
    value, grad = value_and_gradient(case, student, teacher)
    wall = torch.full((*student.shape[:-1], 1), -torch.inf, dtype=dtype)
    walled, walled_grad = value_and_gradient(case, torch.cat([student, wall], -1), torch.cat([teacher, wall], -1))
    torch.testing.assert_close(walled, value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(walled_grad[..., :-1], grad, rtol=2 * ROUNDING[dtype] + 1e-5, atol=1e-6)
    assert (walled_grad[..., -1] == 0).all()
