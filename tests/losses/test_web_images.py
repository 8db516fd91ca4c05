"""The three losses of distillation on images from the web."""

import math

import loss_references as ref
import pytest
import torch

from potstill.errors import InputError, ShapeError
from potstill.losses import instance_alignment, mix_distribution, weighted_feature_alignment


def draw(*shapes, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=draws, dtype=torch.float64) for shape in shapes]


WEIGHT = torch.tensor([0.2, 1.0, 0.0, 0.7], dtype=torch.float64)


def test_the_weighted_mean_equals_the_plain_reading():
    student, teacher = draw((4, 3), (4, 3))
    exact = sum(w * (s - t).square().mean() for w, s, t in zip(WEIGHT, student, teacher)) / WEIGHT.sum()
    torch.testing.assert_close(weighted_feature_alignment(student, teacher, WEIGHT), exact)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e6])
def test_scaling_all_weights_changes_nothing(scale):
    student, teacher = draw((4, 3), (4, 3))
    value = weighted_feature_alignment(student, teacher, WEIGHT)
    torch.testing.assert_close(weighted_feature_alignment(student, teacher, scale * WEIGHT), value)


@pytest.mark.parametrize("junk", [3.0, float("nan"), float("inf")])
def test_a_row_of_weight_zero_has_no_gradient_whatever_stands_there(junk):
    student, teacher = draw((4, 3), (4, 3))
    exact, _ = ref.gradient(lambda s: weighted_feature_alignment(s, teacher, WEIGHT), student)
    student[2], teacher[2] = junk, junk
    value, grad = ref.gradient(lambda s: weighted_feature_alignment(s, teacher, WEIGHT), student)
    assert value == exact
    assert (grad[2] == 0).all()
    assert (grad[[0, 1, 3]] != 0).all()


def test_equal_weights_give_the_plain_squared_error():
    student, teacher = draw((4, 3), (4, 3))
    value = weighted_feature_alignment(student, teacher, torch.full((4,), 0.3))
    torch.testing.assert_close(value, (student - teacher).square().mean())


def test_no_weight_at_all_costs_nothing_and_teacher_and_weights_learn_nothing():
    student, teacher = draw((4, 3), (4, 3))
    value, grad = ref.gradient(lambda s: weighted_feature_alignment(s, teacher, torch.zeros(4)), student)
    assert value == 0
    assert (grad == 0).all()
    teacher.requires_grad_()
    weight = WEIGHT.clone().requires_grad_()
    weighted_feature_alignment(student.requires_grad_(), teacher, weight).backward()
    assert teacher.grad is None
    assert weight.grad is None


def test_wrong_weights_and_widths_are_refused():
    student, teacher = draw((4, 3), (4, 3))
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="a weight does not fit"):
            weighted_feature_alignment(student, teacher, torch.tensor([1, bad, 1, 1]))
    with pytest.raises(ShapeError, match="projector"):
        weighted_feature_alignment(student[:, :2], teacher, WEIGHT)
    with pytest.raises(ShapeError, match=r"n >= 1"):
        weighted_feature_alignment(student[:0], teacher[:0], WEIGHT[:0])
    with pytest.raises(ShapeError, match="weights do not fit"):
        weighted_feature_alignment(student, teacher, WEIGHT[:3])


def test_an_image_mixed_with_nothing_or_itself_stays():
    (x,) = draw((4, 3, 5, 5))
    own = mix_distribution(x, torch.tensor([2, 0, 3, 1]), torch.ones(4))
    torch.testing.assert_close(own, x, rtol=0, atol=1e-6)
    itself = mix_distribution(x, torch.arange(4), torch.tensor([0.0, 0.3, 0.6, 1.0]))
    torch.testing.assert_close(itself, x, rtol=0, atol=1e-6)


def test_the_mixed_image_has_the_mixed_statistics():
    (x,) = draw((4, 3, 5, 5))
    x = x * torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1, 1) + torch.arange(3.0).view(1, 3, 1, 1)
    perm, lam = torch.tensor([2, 0, 3, 1]), torch.tensor([0.0, 0.3, 0.6, 1.0]).double()
    mixed = mix_distribution(x, perm, lam)
    share = lam.view(4, 1)
    for statistic in (lambda y: y.mean((2, 3)), lambda y: (y.var((2, 3), unbiased=False) + 1e-6).sqrt()):
        expected = share * statistic(x) + (1 - share) * statistic(x[perm])
        torch.testing.assert_close(statistic(mixed), expected, rtol=1e-5, atol=1e-6)


def test_a_channel_without_contrast_stays_without():
    (x,) = draw((2, 1, 3, 3))
    x[0] = 4
    mixed = mix_distribution(x, torch.tensor([1, 0]), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(mixed[0], torch.full_like(mixed[0], (4 + x[1].mean().item()) / 2))
    assert torch.isfinite(mixed).all()


def test_statistics_carry_no_gradient_but_the_picture_does():
    (x,) = draw((2, 1, 2, 2))
    _, grad = ref.gradient(lambda y: mix_distribution(y, torch.tensor([1, 0]), torch.tensor([0.5, 1.0])).sum(), x)
    deviation = (x.var((2, 3), unbiased=False, keepdim=True) + 1e-6).sqrt()
    factor = (deviation + deviation.flip(0)) / 2 / deviation
    torch.testing.assert_close(grad[:1], factor[:1].expand(1, 1, 2, 2))
    torch.testing.assert_close(grad[1:], torch.ones(1, 1, 2, 2, dtype=torch.float64))


def test_mixing_keeps_the_type_of_the_images():
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert mix_distribution(x, torch.tensor([1, 0]), torch.tensor([0.5, 0.5])).dtype == torch.bfloat16


@pytest.mark.parametrize("perm", [[0, 0], [0, 2], [-1, 0], [0.0, 1.0]])
def test_what_is_no_permutation_is_refused(perm):
    with pytest.raises(InputError, match="permutation"):
        mix_distribution(torch.zeros(2, 1, 2, 2), torch.tensor(perm), torch.ones(2))


@pytest.mark.parametrize("lam", [-0.1, 1.1, float("nan")])
def test_a_share_outside_zero_to_one_is_refused(lam):
    with pytest.raises(InputError, match="lam"):
        mix_distribution(torch.zeros(2, 1, 2, 2), torch.tensor([1, 0]), torch.tensor([0.5, lam]))


def test_images_that_are_none_are_refused():
    with pytest.raises(ShapeError, match=r"n >= 1"):
        mix_distribution(torch.zeros(0, 1, 2, 2), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    with pytest.raises(ShapeError, match=r"\(n, C, H, W\)"):
        mix_distribution(torch.zeros(2, 3), torch.tensor([1, 0]), torch.ones(2))
    with pytest.raises(ShapeError, match="perm does not fit"):
        mix_distribution(torch.zeros(2, 1, 2, 2), torch.tensor([0]), torch.ones(2))
    with pytest.raises(InputError, match="not floating point"):
        mix_distribution(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([1, 0]), torch.ones(2))


def test_hand_values_of_the_contrast():
    eye = torch.eye(2)
    assert instance_alignment(eye, eye, temperature=0.5).item() == pytest.approx(0.126928, abs=5e-7)
    for n in (2, 5):
        same = torch.ones(n, 3)
        assert instance_alignment(same, 2 * same).item() == pytest.approx(math.log(n), abs=1e-6)


def test_the_contrast_equals_the_plain_reading_and_both_sides_learn():
    z, other = draw((4, 3), (4, 3))

    def plain(a, b):
        scores = torch.stack([torch.cosine_similarity(row, b, dim=-1) for row in a]) / 0.2
        return -(ref.log_softmax(scores).diag().mean() + ref.log_softmax(scores.T).diag().mean()) / 2

    for swap in (False, True):

        def of(function, swap=swap):
            return ref.gradient(lambda x: function(other, x) if swap else function(x, other), z)

        exact, exact_grad = of(plain)
        value, grad = of(lambda a, b: instance_alignment(a, b, temperature=0.2))
        torch.testing.assert_close(value, exact)
        torch.testing.assert_close(grad, exact_grad)
    torch.testing.assert_close(instance_alignment(z, other), instance_alignment(other, z))


def test_the_contrast_is_not_rounded_by_autocast():
    z, other = (x.float() for x in draw((4, 3), (4, 3)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = instance_alignment(z, other)
    torch.testing.assert_close(inside, instance_alignment(z, other))


def test_a_contrast_without_negatives_or_of_other_shapes_is_refused():
    z, other = draw((1, 3), (1, 3))
    with pytest.raises(ShapeError, match="n >= 2; got n = 1"):
        instance_alignment(z, other)
    with pytest.raises(ShapeError, match="do not fit"):
        instance_alignment(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(InputError, match="temperature"):
        instance_alignment(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0)
