import math
import warnings

import pytest
import torch
import torch.nn.functional as F

from potstill.errors import InputError, ShapeError
from potstill.losses import ensemble_soft_target, kd_kl, meal_v2_similarity_loss

HAND = [torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2)]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_hand_values_of_two_teachers():
    torch.testing.assert_close(ensemble_soft_target(HAND), torch.tensor([[0.375, 0.625]]))
    assert meal_v2_similarity_loss(torch.zeros(1, 2), HAND).item() == pytest.approx(0.693147, abs=5e-7)


def test_probabilities_are_averaged_and_not_logits():
    of_logits = sum(HAND).div(2).softmax(-1)
    torch.testing.assert_close(of_logits, torch.tensor([[0.366025, 0.633975]]), rtol=0, atol=1e-6)
    assert (ensemble_soft_target(HAND) - of_logits).abs().max() > 8e-3


def test_the_gradient_is_softmax_minus_target_and_the_minimum_its_entropy():
    teachers = [drawn(4, 5, seed=s) for s in range(3)]
    p = ensemble_soft_target(teachers)
    student = drawn(4, 5, seed=9).requires_grad_()
    loss = meal_v2_similarity_loss(student, teachers)
    loss.backward()
    torch.testing.assert_close(student.grad, (student.detach().softmax(-1) - p) / 4)
    entropy = -(p * p.log()).sum(-1).mean()
    best = p.log().requires_grad_()
    lowest = meal_v2_similarity_loss(best, teachers)
    lowest.backward()
    torch.testing.assert_close(lowest, entropy)
    assert best.grad.abs().max() < 1e-12
    assert loss > entropy


def test_equal_teachers_are_one_and_their_order_does_not_matter():
    student, (a, b, c) = drawn(4, 5), (drawn(4, 5, seed=s) for s in (1, 2, 3))
    one = meal_v2_similarity_loss(student, [a])
    torch.testing.assert_close(meal_v2_similarity_loss(student, [a, a, a]), one)
    torch.testing.assert_close(meal_v2_similarity_loss(student, [c, a, b]), meal_v2_similarity_loss(student, [a, b, c]))


def test_one_teacher_is_plain_distillation_plus_its_entropy():
    student, teacher = drawn(6, 4), drawn(6, 4, seed=1)
    p = teacher.softmax(-1)
    expected = kd_kl(student, teacher) - (p * p.log()).sum(-1).mean()
    torch.testing.assert_close(meal_v2_similarity_loss(student, [teacher]), expected)


def test_weights_are_shares():
    student, teachers = drawn(4, 5), [drawn(4, 5, seed=s) for s in (1, 2)]
    p = ensemble_soft_target(teachers, [3, 1])
    torch.testing.assert_close(p, 0.75 * teachers[0].softmax(-1) + 0.25 * teachers[1].softmax(-1))
    torch.testing.assert_close(p, ensemble_soft_target(teachers, [0.3, 0.1]))
    torch.testing.assert_close(meal_v2_similarity_loss(student, teachers, weights=[3, 1]), F.cross_entropy(student, p))
    alone = [teachers[0], torch.full((4, 5), torch.nan, dtype=torch.float64)]
    torch.testing.assert_close(ensemble_soft_target(alone, [1, 0]), teachers[0].softmax(-1))


def test_teachers_that_require_a_gradient_are_detached_with_a_warning():
    student, teacher = drawn(4, 5).requires_grad_(), drawn(4, 5, seed=1).requires_grad_()
    with pytest.warns(UserWarning, match="they are detached"):
        meal_v2_similarity_loss(student, [teacher]).backward()
    assert teacher.grad is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        meal_v2_similarity_loss(student, [teacher.detach()])


def _similarity(teachers, weights=None):
    return meal_v2_similarity_loss(drawn(4, 5), teachers, weights=weights)


@pytest.mark.parametrize("loss", [ensemble_soft_target, _similarity])
def test_teachers_and_weights_that_do_not_fit_are_refused(loss):
    a = drawn(4, 5, seed=1)
    with pytest.raises(InputError, match="no teacher"):
        loss([])
    with pytest.raises(InputError, match="a list of logits"):
        loss(a)
    with pytest.raises(ShapeError, match=r"teacher 1.*\[4, 5\]; got \[4, 6\]"):
        loss([a, drawn(4, 6)])
    with pytest.raises(ShapeError, match=r"teacher 1.*\[4, 5\]; got \[3, 5\]"):
        loss([a, drawn(3, 5)])
    for bad in ([1, -1], [0, 0], [math.inf, 1]):
        with pytest.raises(InputError, match="none negative"):
            loss([a, a], bad)
    with pytest.raises(InputError, match="differ in number; expected 2; got 1"):
        loss([a, a], [1])


def test_a_student_of_other_classes_is_refused():
    with pytest.raises(ShapeError, match="student and teacher logits"):
        meal_v2_similarity_loss(drawn(4, 6), [drawn(4, 5)])


def test_a_mean_over_no_row_is_refused_and_a_sum_is_zero():
    nothing = torch.zeros(4, dtype=torch.bool)
    with pytest.raises(InputError, match="mask leaves no row"):
        meal_v2_similarity_loss(drawn(4, 5), [drawn(4, 5)], nothing)
    assert meal_v2_similarity_loss(drawn(4, 5), [drawn(4, 5)], nothing, reduction="sum") == 0
