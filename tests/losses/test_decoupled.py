import math

import loss_references as ref
import pytest
import torch

from potstill.errors import InputError, ShapeError
from potstill.losses import dkd, kd_kl


def pair(*shape, seed=0, scale=2.0):
    draws = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(*shape, generator=draws, dtype=torch.float64) for _ in range(2)]


def test_hand_values_of_two_to_one_to_one():
    teacher, student, target = torch.tensor([[math.log(2), 0, 0]]), torch.zeros(1, 3), torch.tensor([0])
    assert dkd(student, teacher, target, alpha=1, beta=0, temperature=1).item() == pytest.approx(0.058892, abs=5e-7)
    assert dkd(student, teacher, target, alpha=0, beta=1, temperature=1).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 4.0])
@pytest.mark.parametrize("shape", [(1, 2), (7, 5), (6, 13)])
def test_value_and_gradient_equal_the_plain_reading(temperature, shape):
    # Odds near 1 at T = 0.05, or 1 - p_y is 0 in the plain reading.
    student, teacher = pair(*shape, scale=0.3 if temperature == 0.05 else 2.0)
    target = torch.arange(shape[0]) % shape[1]
    keep = torch.arange(shape[0]) % 3 != 1
    exact, exact_grad = ref.gradient(lambda s: ref.dkd(s, teacher, target, temperature, keep=keep), student)
    for dtype, rtol in ((torch.float64, 1e-7), (torch.float32, 5e-4)):
        value, grad = ref.gradient(
            lambda s, dtype=dtype: dkd(s, teacher.to(dtype), target, temperature=temperature, mask=keep),
            student.to(dtype),
        )
        torch.testing.assert_close(value.double(), exact, rtol=rtol, atol=rtol)
        torch.testing.assert_close(grad.double(), exact_grad, rtol=rtol, atol=rtol * exact_grad.abs().max().item())


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_is_the_target_part_plus_doubt_times_the_rest_in_every_row(temperature):
    student, teacher = pair(9, 6)
    target = torch.arange(9) % 6
    options = {"temperature": temperature, "reduction": "none"}
    tckd = dkd(student, teacher, target, alpha=1, beta=0, **options)
    nckd = dkd(student, teacher, target, alpha=0, beta=1, **options)
    doubt = 1 - ref.softmax(teacher, temperature).gather(1, target.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(kd_kl(student, teacher, **options), tckd + doubt * nckd)


def test_rows_with_the_ignored_target_do_not_count():
    student, teacher = pair(6, 4)
    target = torch.tensor([0, -100, 2, 3, -100, 1])
    kept = target != -100
    value, grad = ref.gradient(lambda s: dkd(s, teacher, target), student)
    torch.testing.assert_close(value, dkd(student[kept], teacher[kept], target[kept]))
    assert (grad[~kept] == 0).all()


def test_the_mask_and_the_ignored_target_both_drop_rows():
    student, teacher = pair(4, 4)
    target, mask = torch.tensor([0, -100, 2, 3]), torch.tensor([True, True, True, False])
    torch.testing.assert_close(
        dkd(student, teacher, target, mask=mask), dkd(student[[0, 2]], teacher[[0, 2]], target[[0, 2]])
    )


def test_another_ignored_index_and_token_shapes_work():
    student, teacher = pair(2, 3, 4)
    target = torch.tensor([[0, 1, 7], [7, 3, 2]])
    keep = target != 7
    value = dkd(student, teacher, target, ignore_index=7)
    torch.testing.assert_close(value, dkd(student[keep], teacher[keep], target[keep]))
    assert dkd(student, teacher, target, ignore_index=7, reduction="none").shape == (2, 3)


def test_nothing_but_ignored_targets_gives_zero_with_a_graph():
    student, teacher = pair(3, 4)
    value, grad = ref.gradient(lambda s: dkd(s, teacher, torch.full((3,), -100)), torch.full_like(student, torch.nan))
    assert value == 0
    assert (grad == 0).all()


def test_the_order_of_rows_does_not_matter():
    student, teacher = pair(6, 4)
    target, order = torch.tensor([0, 1, 2, 3, 2, 1]), torch.tensor([5, 3, 0, 1, 4, 2])
    torch.testing.assert_close(dkd(student[order], teacher[order], target[order]), dkd(student, teacher, target))


def test_two_classes_have_no_rest_to_compare():
    student, teacher = pair(5, 2)
    target = torch.tensor([0, 1, 1, 0, 1])
    assert dkd(student, teacher, target, alpha=0, beta=1).item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(
        dkd(student, teacher, target, alpha=1, beta=0, temperature=2), kd_kl(student, teacher, temperature=2)
    )


@pytest.mark.parametrize("temperature", [0.05, 1.0, 4.0])
def test_a_very_confident_teacher_keeps_value_and_gradient_finite(temperature):
    student, teacher = torch.zeros(3, 5), torch.zeros(3, 5)
    teacher[0, 1], student[1, 2], teacher[2, 3], student[2, 4] = 1e4, 1e4, -1e4, 1e4
    value, grad = ref.gradient(lambda s: dkd(s, teacher, torch.tensor([1, 2, 3]), temperature=temperature), student)
    assert torch.isfinite(value)
    assert torch.isfinite(grad).all()


def test_the_rest_still_teaches_when_the_target_has_all_the_mass():
    teacher = torch.tensor([[60.0, 1.0, -1.0]])
    _, grad = ref.gradient(lambda s: dkd(s, teacher, torch.tensor([0]), temperature=1), torch.zeros(1, 3))
    assert grad[0, 1] < -1
    _, plain = ref.gradient(lambda s: kd_kl(s, teacher), torch.tensor([[60.0, 0.0, 0.0]]))
    assert plain.abs().max() < 1e-6


def test_a_constant_added_to_a_row_changes_nothing():
    student, teacher = pair(4, 5)
    target = torch.tensor([0, 1, 2, 3])
    torch.testing.assert_close(dkd(student + 7, teacher - 2, target), dkd(student, teacher, target))


@pytest.mark.parametrize("bad", [-1, 4, 100])
def test_a_target_that_is_no_class_is_refused_unless_masked(bad):
    student, teacher = pair(3, 4)
    target = torch.tensor([0, bad, 1])
    with pytest.raises(InputError, match=rf"0 to 3, or ignore_index=-100; got {bad}"):
        dkd(student, teacher, target)
    assert torch.isfinite(dkd(student, teacher, target, mask=torch.tensor([True, False, True])))


def test_wrong_targets_and_vocabularies_are_refused():
    student, teacher = pair(3, 4)
    with pytest.raises(ShapeError, match="V >= 2"):
        dkd(student[:, :1], teacher[:, :1], torch.zeros(3, dtype=torch.long))
    with pytest.raises(ShapeError, match=r"targets.*\[3\]; got \[2\]"):
        dkd(student, teacher, torch.tensor([0, 1]))
    with pytest.raises(InputError, match="class ids"):
        dkd(student, teacher, torch.zeros(3))
    with pytest.raises(ShapeError, match="student has 4 classes, teacher 3"):
        dkd(student, teacher[:, :3], torch.tensor([0, 1, 2]))
    with pytest.raises(InputError, match="temperature"):
        dkd(student, teacher, torch.tensor([0, 1, 2]), temperature=0)
    torch.testing.assert_close(
        dkd(student, teacher, torch.tensor([0, 1, 2]), shared_vocab=3),
        dkd(student[:, :3], teacher[:, :3], torch.tensor([0, 1, 2])),
    )
