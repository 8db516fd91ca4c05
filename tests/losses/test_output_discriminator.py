import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from potstill.errors import InputError, ShapeError
from potstill.losses import OutputDiscriminator, meal_v2_discriminator_loss


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layers(C=8, widths=(4, 3), seed=0):
    sizes = [C, *widths, 2]
    weights = [drawn(o, i, seed=seed + n) for n, (i, o) in enumerate(itertools.pairwise(sizes))]
    return weights, [drawn(o, seed=seed + 10 + n) for n, o in enumerate(sizes[1:])]


def plain(student, teacher, weights, biases, final_relu=True):
    """The loss as it is written down: stack, three layers, BCE with targets (1, 0) and (0, 1)."""
    x = torch.cat([student, teacher])
    for i in range(3):
        x = x @ weights[i].T + biases[i]
        x = x.clamp_min(0) if i < 2 or final_relu else x
    target = torch.tensor([[1.0, 0.0]] * len(student) + [[0.0, 1.0]] * len(teacher), dtype=x.dtype)
    return F.binary_cross_entropy_with_logits(x, target)


@pytest.mark.parametrize("final_relu", [True, False])
def test_value_and_gradients_equal_the_plain_reading(final_relu):
    found, exact = [], []
    for loss, into in ((meal_v2_discriminator_loss, found), (plain, exact)):
        student, (weights, biases) = drawn(5, 8, seed=1).requires_grad_(), layers()
        for tensor in (*weights, *biases):
            tensor.requires_grad_()
        options = {"adversarial": False} if loss is meal_v2_discriminator_loss else {}
        value = loss(student, drawn(5, 8, seed=2), weights, biases, final_relu=final_relu, **options)
        value.backward()
        into += [value, student.grad, *(t.grad for t in (*weights, *biases))]
    assert any(g.abs().max() > 0 for g in exact[2:])
    for a, b in zip(found, exact):
        torch.testing.assert_close(a, b)


def test_a_discriminator_of_zeros_gives_ln_two():
    weights, biases = ([torch.zeros_like(t) for t in side] for side in layers())
    value = meal_v2_discriminator_loss(drawn(5, 8), drawn(5, 8, seed=1), weights, biases)
    assert value.item() == pytest.approx(0.693147, abs=5e-7)


def test_the_last_relu_keeps_the_loss_above_half_of_ln_two():
    teacher = torch.full((3, 8), 50.0)
    weights = [torch.eye(4, 8), torch.eye(3, 4), torch.tensor([[-10.0, 0, 0], [10.0, 0, 0]])]
    biases = [torch.zeros(4), torch.zeros(3), torch.tensor([100.0, -100.0])]
    perfect = meal_v2_discriminator_loss(torch.zeros(3, 8), teacher, weights, biases)
    assert perfect.item() == pytest.approx(math.log(2) / 2, abs=1e-6)
    assert meal_v2_discriminator_loss(torch.zeros(3, 8), teacher, weights, biases, final_relu=False) < 1e-6
    for seed in range(20):
        value = meal_v2_discriminator_loss(drawn(6, 8, seed=seed), drawn(6, 8, seed=50 + seed), *layers(seed=seed))
        assert value >= 0.3465


@pytest.mark.parametrize("strength", [0.0, 1.0, 2.5])
def test_the_adversary_turns_only_the_gradient_into_the_student(strength):
    rows = {}
    for adversarial in (False, True):
        student, (weights, biases) = drawn(5, 8, seed=1).requires_grad_(), layers()
        for tensor in (*weights, *biases):
            tensor.requires_grad_()
        value = meal_v2_discriminator_loss(student, drawn(5, 8, seed=2), weights, biases, adversarial, strength)
        value.backward()
        rows[adversarial] = value, student.grad, [t.grad for t in (*weights, *biases)]
    assert torch.equal(rows[True][0], rows[False][0])
    assert rows[False][1].abs().max() > 0
    torch.testing.assert_close(rows[True][1], -strength * rows[False][1])
    for a, b in zip(rows[True][2], rows[False][2]):
        assert torch.equal(a, b)


def test_the_order_within_a_block_does_not_matter():
    student, teacher, order = drawn(5, 8), drawn(5, 8, seed=1), torch.tensor([3, 0, 4, 1, 2])
    value = meal_v2_discriminator_loss(student, teacher, *layers())
    torch.testing.assert_close(meal_v2_discriminator_loss(student[order], teacher, *layers()), value)
    torch.testing.assert_close(meal_v2_discriminator_loss(student, teacher[order], *layers()), value)


def test_no_gradient_reaches_the_teacher():
    student, teacher = drawn(5, 8).requires_grad_(), drawn(5, 8, seed=1).requires_grad_()
    meal_v2_discriminator_loss(student, teacher, *layers()).backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0


def test_masked_rows_reach_neither_value_nor_gradient():
    student, teacher = drawn(5, 8), drawn(5, 8, seed=1)
    mask = torch.tensor([True, False, True, True, False])
    kept = meal_v2_discriminator_loss(student[mask], teacher[mask], *layers())
    spoilt = student.masked_fill(~mask[:, None], torch.nan).requires_grad_()
    value = meal_v2_discriminator_loss(spoilt, teacher.masked_fill(~mask[:, None], torch.inf), *layers(), mask=mask)
    value.backward()
    torch.testing.assert_close(value, kept)
    assert (spoilt.grad[~mask] == 0).all()
    assert torch.isfinite(spoilt.grad).all()


def test_the_mean_is_the_sum_over_the_rows_that_count():
    student, teacher, mask = drawn(5, 8), drawn(5, 8, seed=1), torch.arange(5) < 3
    rows, total, mean = (
        meal_v2_discriminator_loss(student, teacher, *layers(), mask=mask, reduction=r) for r in ("none", "sum", "mean")
    )
    assert (rows[3:] == 0).all()
    torch.testing.assert_close(rows.sum(), total)
    torch.testing.assert_close(total / 3, mean)
    nothing = torch.zeros(5, dtype=torch.bool)
    assert meal_v2_discriminator_loss(student, teacher, *layers(), mask=nothing, reduction="sum") == 0
    with pytest.raises(InputError, match="mask leaves no row"):
        meal_v2_discriminator_loss(student, teacher, *layers(), mask=nothing)


def test_statistics_are_float32_in_half_precision_and_under_autocast():
    student, teacher, (weights, biases) = drawn(5, 8).float(), drawn(5, 8, seed=1).float(), layers()
    weights, biases = [w.float() for w in weights], [b.float() for b in biases]
    exact = meal_v2_discriminator_loss(student, teacher, weights, biases)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(meal_v2_discriminator_loss(student, teacher, weights, biases), exact)
    half = meal_v2_discriminator_loss(
        student.bfloat16(), teacher.bfloat16(), [w.bfloat16() for w in weights], [b.bfloat16() for b in biases]
    )
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0.1, atol=0.02)


def test_the_module_holds_three_layers_and_gives_the_same_value():
    torch.manual_seed(0)
    part = OutputDiscriminator(80, shrink=4).double()
    assert [tuple(layer.weight.shape) for layer in part.layers] == [(20, 80), (5, 20), (2, 5)]
    student, teacher = drawn(6, 80), drawn(6, 80, seed=1)
    weights, biases = [layer.weight for layer in part.layers], [layer.bias for layer in part.layers]
    torch.testing.assert_close(part(student, teacher), meal_v2_discriminator_loss(student, teacher, weights, biases))
    open_end = OutputDiscriminator(80, shrink=4, final_relu=False).double()
    open_end.load_state_dict(part.state_dict())
    expected = meal_v2_discriminator_loss(student, teacher, weights, biases, final_relu=False)
    torch.testing.assert_close(open_end(student, teacher), expected)


def test_the_default_shrink_is_eight():
    assert [layer.out_features for layer in OutputDiscriminator(1000).layers] == [125, 15, 2]


def test_classes_too_few_for_the_shrink_are_refused():
    with pytest.raises(InputError, match="at least 64 classes for shrink = 8; got 63"):
        OutputDiscriminator(63)
    OutputDiscriminator(64)
    with pytest.raises(InputError, match="shrink does not fit"):
        OutputDiscriminator(64, shrink=0)


def test_what_does_not_fit_is_refused():
    weights, biases = layers()
    a = drawn(5, 8)
    with pytest.raises(ShapeError, match=r"both \(N, C\)"):
        meal_v2_discriminator_loss(a, drawn(4, 8), weights, biases)
    with pytest.raises(ShapeError, match=r"both \(N, C\)"):
        meal_v2_discriminator_loss(a, drawn(5, 7), weights, biases)
    with pytest.raises(InputError, match="three layers"):
        meal_v2_discriminator_loss(a, a, weights[:2], biases)
    with pytest.raises(ShapeError, match="layer 1 does not fit"):
        meal_v2_discriminator_loss(a, a, [weights[0], weights[1][:, :2], weights[2]], biases)
    with pytest.raises(InputError, match="strength"):
        meal_v2_discriminator_loss(a, a, weights, biases, strength=-1)
    with pytest.raises(ShapeError, match="mask does not fit"):
        meal_v2_discriminator_loss(a, a, weights, biases, mask=torch.ones(4, dtype=torch.bool))
    with pytest.raises(InputError, match="floating point"):
        meal_v2_discriminator_loss(a, a.long(), weights, biases)
