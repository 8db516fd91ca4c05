import loss_references as ref
import pytest
import torch

from potstill.errors import InputError, ShapeError
from potstill.losses import whitened_feature_loss


def draw(*shapes, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=draws, dtype=torch.float64) for shape in shapes]


def case(N=4, n=None):
    return draw((2, n or N, 3), (2, N, 6), (6, 3), (6,))


def plain(student, teacher, weight, bias, beta):
    values = []
    for s, t in zip(student.flatten(0, 1), teacher.flatten(0, 1)):
        target = (t - t.mean()) / (t.var(unbiased=False) + 1e-6).sqrt()
        for gap in (weight @ s + bias - target).abs():
            values.append(gap**2 / (2 * beta) if gap < beta else gap - beta / 2)
    return sum(values) / len(values)


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_value_and_gradient_equal_the_plain_reading(beta):
    student, teacher, weight, bias = case()
    for i in (0, 2, 3):
        given = [student, teacher, weight, bias]

        def of(function, i=i, given=given):
            return ref.gradient(lambda x: function(*given[:i], x, *given[i + 1 :]), given[i])

        exact, exact_grad = of(lambda *x: plain(*x, beta))
        value, grad = of(lambda *x: whitened_feature_loss(*x, beta=beta))
        torch.testing.assert_close(value, exact)
        torch.testing.assert_close(grad, exact_grad)


def test_scale_and_shift_of_a_teacher_token_change_nothing():
    student, teacher, weight, bias = case()
    value = whitened_feature_loss(student, teacher, weight, bias)
    scale, shift = draw((2, 4, 1), (2, 4, 1), seed=1)
    moved = whitened_feature_loss(student, (1 + scale.abs()) * teacher + 10 * shift, weight, bias)
    torch.testing.assert_close(moved, value, rtol=1e-5, atol=0)


def test_a_student_that_projects_to_the_normalised_teacher_costs_nothing():
    _, teacher, _, _ = case()
    student = torch.nn.functional.layer_norm(teacher, (6,), eps=1e-6)
    assert whitened_feature_loss(student, 3 * teacher, torch.eye(6), torch.zeros(6)).item() < 1e-10


def test_no_gradient_reaches_the_teacher_but_the_projection_learns():
    given = [x.requires_grad_() for x in case()]
    whitened_feature_loss(*given).backward()
    student, teacher, weight, bias = given
    assert teacher.grad is None
    assert all(x.grad.abs().sum() > 0 for x in (student, weight, bias))


def test_keeping_every_token_equals_no_ids():
    given = case()
    every = torch.arange(4).expand(2, 4)
    assert whitened_feature_loss(*given, every) == whitened_feature_loss(*given)


@pytest.mark.parametrize("junk", [7.0, float("nan")])
def test_the_teachers_other_tokens_change_nothing(junk):
    student, teacher, weight, bias = case(N=4, n=2)
    keep = torch.tensor([[0, 2], [1, 3]])
    value = whitened_feature_loss(student, teacher, weight, bias, keep)
    picked = torch.stack([teacher[0, [0, 2]], teacher[1, [1, 3]]])
    torch.testing.assert_close(value, whitened_feature_loss(student, picked, weight, bias))
    teacher[0, 1], teacher[1, 2] = junk, junk
    assert whitened_feature_loss(student, teacher, weight, bias, keep) == value


def test_a_token_without_contrast_becomes_zero():
    student = torch.zeros(1, 1, 3)
    assert whitened_feature_loss(student, torch.full((1, 1, 6), 4.0), torch.zeros(6, 3), torch.zeros(6)) == 0


def test_wrong_shapes_ids_and_beta_are_refused():
    student, teacher, weight, bias = case(N=4, n=2)
    with pytest.raises(ShapeError, match="2 tokens and the teacher 4"):
        whitened_feature_loss(student, teacher, weight, bias)
    with pytest.raises(InputError, match="0 to 3; got 4"):
        whitened_feature_loss(student, teacher, weight, bias, torch.tensor([[0, 4], [0, 1]]))
    with pytest.raises(ShapeError, match=r"weight \[6, 3\] and bias \[6\]; got weight \[3, 6\]"):
        whitened_feature_loss(student, teacher, weight.T, bias)
    with pytest.raises(ShapeError, match="token features do not fit"):
        whitened_feature_loss(student[:1], teacher, weight, bias)
    with pytest.raises(InputError, match="beta"):
        whitened_feature_loss(student, teacher[:, :2], weight, bias, beta=0)
