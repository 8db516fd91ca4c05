"""kd_kl, reverse_kl, generalized_jsd, tv_distance: hand values, parity, extremes, errors."""

import math

import loss_references as ref
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.errors import InputError, ShapeError
from potstill.losses import generalized_jsd, kd_kl, reverse_kl, tv_distance

PAIRS = {"kd_kl": (kd_kl, ref.forward_kl), "reverse_kl": (reverse_kl, ref.backward_kl)}
PAIRS |= {"generalized_jsd": (generalized_jsd, ref.jsd), "tv_distance": (tv_distance, ref.tv)}
every_divergence = pytest.mark.parametrize("name", PAIRS)
TEACHER, STUDENT = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)


def pair(*shape, seed=0, scale=2.0):
    draws = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(*shape, generator=draws, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize(
    ("name", "value"),
    [("kd_kl", 0.130812), ("reverse_kl", 0.143841), ("generalized_jsd", 0.033822), ("tv_distance", 0.25)],
)
def test_hand_values_of_three_to_one_against_even(name, value):
    assert PAIRS[name][0](STUDENT, TEACHER).item() == pytest.approx(value, abs=5e-7)


@every_divergence
@pytest.mark.parametrize("temperature", [0.05, 1.0, 4.0])
@pytest.mark.parametrize("shape", [(1, 2), (7, 13), (3, 5, 17), (2, 1, 3, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradient_equal_the_plain_reading(name, temperature, shape, masked):
    loss, plain = PAIRS[name]
    student, teacher = pair(*shape)
    mask = torch.arange(math.prod(shape[:-1])).reshape(shape[:-1]) % 3 != 1 if masked else None
    exact, exact_grad = ref.gradient(lambda s: plain(s, teacher, temperature, mask), student)
    for dtype, rtol in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
        value, grad = ref.gradient(
            lambda s, dtype=dtype: loss(s, teacher.to(dtype), temperature=temperature, mask=mask), student.to(dtype)
        )
        assert value.dtype == grad.dtype == dtype
        torch.testing.assert_close(value.double(), exact, rtol=rtol, atol=rtol * 1e-1)
        torch.testing.assert_close(grad.double(), exact_grad, rtol=rtol, atol=rtol * max(1e-9, exact_grad.abs().max()))


@pytest.mark.parametrize("beta", [0.1, 0.37, 0.9])
def test_jsd_equals_the_plain_reading_for_any_beta(beta):
    student, teacher = pair(6, 9)
    exact, exact_grad = ref.gradient(lambda s: ref.jsd(s, teacher, beta=beta), student)
    value, grad = ref.gradient(lambda s: generalized_jsd(s, teacher, beta=beta), student)
    torch.testing.assert_close(value, exact)
    torch.testing.assert_close(grad, exact_grad)


def test_t_squared_is_on_for_forward_and_off_for_reverse_kl():
    student, teacher = pair(4, 6)
    for loss, default in ((kd_kl, True), (reverse_kl, False)):
        plain = loss(student, teacher, temperature=3.0, scale_by_t2=False)
        torch.testing.assert_close(loss(student, teacher, temperature=3.0, scale_by_t2=True), 9 * plain)
        torch.testing.assert_close(loss(student, teacher, temperature=3.0), 9 * plain if default else plain)


def test_t_squared_keeps_the_gradient_of_half_the_squared_centred_gap():
    student, teacher = pair(16, 10, scale=1.0)
    _, grad = ref.gradient(lambda s: kd_kl(s, teacher, temperature=100.0), student)

    def squared_gap(s):
        gap = (s - s.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
        return 0.5 * gap.square().mean(-1).mean()

    _, limit = ref.gradient(squared_gap, student)
    assert (grad - limit).norm() / limit.norm() < 0.02


def test_mean_runs_over_all_positions_and_not_over_the_first_axis():
    student, teacher = pair(4, 5, 6)
    flat = kd_kl(student.reshape(20, 6), teacher.reshape(20, 6))
    torch.testing.assert_close(kd_kl(student, teacher), flat)


def test_jsd_is_symmetric_under_exchange_of_sides_and_weights():
    student, teacher = pair(8, 5)
    for beta in (0.1, 0.5, 0.8):
        torch.testing.assert_close(
            generalized_jsd(student, teacher, beta=beta), generalized_jsd(teacher, student, beta=1 - beta)
        )


def test_jsd_ends_are_the_two_kls_and_its_slope_leads_there():
    student, teacher = pair(8, 5, scale=1.0)
    forward, backward = kd_kl(student, teacher), reverse_kl(student, teacher)
    torch.testing.assert_close(generalized_jsd(student, teacher, beta=0), forward)
    torch.testing.assert_close(generalized_jsd(student, teacher, beta=1), backward)
    assert generalized_jsd(student, teacher, beta=1e-3) / 1e-3 == pytest.approx(forward.item(), rel=1e-2)
    assert generalized_jsd(student, teacher, beta=1 - 1e-3) / 1e-3 == pytest.approx(backward.item(), rel=1e-2)


rows = st.lists(st.floats(-30, 30, width=32), min_size=4, max_size=4)


@settings(max_examples=60, deadline=None)
@given(rows, rows, st.sampled_from([0.05, 1.0, 4.0]))
def test_bounds_hold_for_any_logits(student, teacher, temperature):
    student, teacher = (torch.tensor([x], dtype=torch.float64) for x in (student, teacher))
    forward = kd_kl(student, teacher, temperature=temperature, scale_by_t2=False).item()
    distance = tv_distance(student, teacher, temperature=temperature).item()
    half = generalized_jsd(student, teacher, temperature=temperature).item()
    assert forward > -1e-12
    assert reverse_kl(student, teacher, temperature=temperature).item() > -1e-12
    assert -1e-12 < half < math.log(2) + 1e-12
    assert 0 <= distance <= 1 + 1e-12
    assert distance**2 <= forward / 2 + 1e-12  # Pinsker


@every_divergence
def test_a_constant_added_to_a_row_changes_nothing(name):
    loss = PAIRS[name][0]
    student, teacher = pair(6, 7)
    shift = torch.arange(6.0).unsqueeze(-1)
    torch.testing.assert_close(loss(student + shift, teacher - 3 * shift), loss(student, teacher))
    assert abs(loss(teacher + shift, teacher)) < 1e-12


@every_divergence
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_huge_logits_stay_finite_in_value_and_gradient(name, temperature):
    draws = torch.Generator().manual_seed(1)
    student, teacher = (1e4 * torch.randn(5, 11, generator=draws).sign() for _ in range(2))
    student[0], teacher[0] = teacher[0], teacher[0]
    value, grad = ref.gradient(lambda s: PAIRS[name][0](s, teacher, temperature=temperature), student)
    assert torch.isfinite(value)
    assert torch.isfinite(grad).all()


@every_divergence
def test_a_token_banned_in_both_models_equals_a_smaller_vocabulary(name):
    loss = PAIRS[name][0]
    student, teacher = pair(4, 6)
    small, small_grad = ref.gradient(lambda s: loss(s, teacher), student)
    wall = torch.full((4, 1), -torch.inf, dtype=torch.float64)
    banned = torch.cat([teacher, wall], -1)
    value, grad = ref.gradient(lambda s: loss(s, banned), torch.cat([student, wall], -1))
    torch.testing.assert_close(value, small)
    torch.testing.assert_close(grad[:, :-1], small_grad)
    assert (grad[:, -1] == 0).all()


def test_a_token_banned_by_the_teacher_alone_keeps_what_is_finite_finite():
    student, teacher = pair(4, 6)
    teacher[:, 2] = -torch.inf
    for loss in (kd_kl, generalized_jsd, tv_distance):
        value, grad = ref.gradient(lambda s, loss=loss: loss(s, teacher), student)
        assert torch.isfinite(value)
        assert torch.isfinite(grad).all()
        assert (grad[:, 2] > 0).all()  # the student is told to leave the token
    assert reverse_kl(student, teacher) == torch.inf


@every_divergence
def test_unequal_vocabularies_are_refused_with_both_sizes_and_the_way_out(name):
    with pytest.raises(ShapeError, match=r"student has 5 classes, teacher 7.*shared_vocab=n"):
        PAIRS[name][0](torch.zeros(2, 5), torch.zeros(2, 7))


@every_divergence
def test_shared_vocab_cuts_and_renormalises(name):
    loss = PAIRS[name][0]
    (student, _), (_, teacher) = pair(3, 5), pair(3, 7)
    value, grad = ref.gradient(lambda s: loss(s, teacher, shared_vocab=4), student)
    torch.testing.assert_close(value, loss(student[:, :4], teacher[:, :4]))
    assert (grad[:, 4] == 0).all()
    for n in (0, 6):
        with pytest.raises(ShapeError, match="1 to 5"):
            loss(student, teacher, shared_vocab=n)


@every_divergence
@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_above_zero_is_refused(name, temperature):
    with pytest.raises(InputError, match="temperature"):
        PAIRS[name][0](STUDENT, TEACHER, temperature=temperature)


@pytest.mark.parametrize("beta", [-0.01, 1.01, float("nan")])
def test_a_beta_outside_the_unit_interval_is_refused(beta):
    with pytest.raises(InputError, match=r"beta.*\[0, 1\]"):
        generalized_jsd(STUDENT, TEACHER, beta=beta)


@every_divergence
def test_other_leading_shapes_are_refused(name):
    with pytest.raises(ShapeError, match="leading shapes"):
        PAIRS[name][0](torch.zeros(2, 3, 4), torch.zeros(3, 2, 4))
    with pytest.raises(ShapeError, match="scalar"):
        PAIRS[name][0](torch.tensor(0.0), torch.tensor(0.0))


@every_divergence
def test_one_class_or_no_leading_axis_is_legal(name):
    loss = PAIRS[name][0]
    assert loss(torch.randn(3, 1), torch.randn(3, 1)) == 0
    assert loss(STUDENT[0], TEACHER[0]) == loss(STUDENT, TEACHER)


def test_value_errors_are_value_errors():
    with pytest.raises(ValueError, match="kd_kl"):
        kd_kl(STUDENT, TEACHER, temperature=-2)
