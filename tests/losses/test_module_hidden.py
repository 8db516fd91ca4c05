import pytest
import torch

from potstill.errors import InputError, ShapeError
from potstill.losses import module_hidden_loss


def states(layers, B, T, D, seed=0, dtype=torch.float64):
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(B, T, D, generator=draws, dtype=dtype) for _ in range(layers)]


MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_hand_value_of_two_layers():
    # Layer 1: two tokens that count differ by 1 in both channels, error 1. Layer 2: by 3, error 9. Mean 5.
    mask = torch.tensor([[True, True, False]])
    teacher = [torch.zeros(1, 3, 2), torch.zeros(1, 3, 2)]
    student = [torch.ones(1, 3, 2), torch.full((1, 3, 2), 3.0)]
    student[0][0, 2] = 100.0
    assert module_hidden_loss(student, teacher, None, mask).item() == 5


@pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
def test_value_and_gradients_equal_the_plain_reading(mask):
    student, teacher = states(2, 2, 3, 4), states(2, 2, 3, 6, seed=1)
    weights = [w[0] for w in states(2, 1, 6, 4, seed=2)]

    def plain(h0, w0):
        total = 0
        for h_s, h_t, w in ((h0, teacher[0], w0), (student[1], teacher[1], weights[1])):
            keep = torch.ones(2, 3, dtype=torch.bool) if mask is None else mask
            errors = [((w @ h_s[b, t]) - h_t[b, t]).square().sum() for b in range(2) for t in range(3) if keep[b, t]]
            total = total + sum(errors) / (len(errors) * 6)
        return total / 2

    def ours(h0, w0):
        return module_hidden_loss([h0, student[1]], teacher, [w0, weights[1]], mask)

    leaves = [student[0].clone().requires_grad_(), weights[0].clone().requires_grad_()]
    exact, value = plain(*leaves), ours(*leaves)
    torch.testing.assert_close(value, exact)
    for got, expected in zip(torch.autograd.grad(value, leaves), torch.autograd.grad(exact, leaves)):
        torch.testing.assert_close(got, expected)


def test_equal_states_have_no_loss_and_the_teacher_gets_no_gradient():
    teacher = [h.requires_grad_() for h in states(2, 2, 3, 4)]
    student = [h.detach().clone().requires_grad_() for h in teacher]
    value = module_hidden_loss(student, teacher, None, None)
    value.backward()
    assert value == 0
    assert all(h.grad is None for h in teacher)
    assert all((h.grad == 0).all() for h in student)


def test_junk_at_masked_tokens_reaches_no_projection_gradient():
    student, teacher = states(1, 2, 3, 4), states(1, 2, 3, 6, seed=1)
    (weight,) = (w[0].requires_grad_() for w in states(1, 1, 6, 4, seed=2))
    module_hidden_loss(student, teacher, [weight], MASK).backward()
    clean = weight.grad.clone()
    weight.grad = None
    student[0][~MASK], teacher[0][~MASK] = torch.nan, torch.inf
    module_hidden_loss(student, teacher, [weight], MASK).backward()
    torch.testing.assert_close(weight.grad, clean)


def test_a_pair_of_equal_widths_may_go_without_projection():
    student, teacher = [*states(1, 2, 3, 4), *states(1, 2, 3, 6)], states(2, 2, 3, 6, seed=1)
    weight = states(1, 1, 6, 4, seed=2)[0][0]
    both = module_hidden_loss(student, teacher, [weight, None], None)
    alone = [
        module_hidden_loss(student[:1], teacher[:1], [weight], None),
        module_hidden_loss(student[1:], teacher[1:]),
    ]
    torch.testing.assert_close(both, sum(alone) / 2)


def test_projections_train_in_half_precision_models_and_under_autocast():
    student, teacher = states(1, 2, 3, 4, dtype=torch.float32), states(1, 2, 3, 6, seed=1, dtype=torch.float32)
    weight = states(1, 1, 6, 4, seed=2, dtype=torch.float32)[0][0].requires_grad_()
    plain = module_hidden_loss(student, teacher, [weight], None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = module_hidden_loss(student, teacher, [weight], None)
    torch.testing.assert_close(inside, plain)
    half = module_hidden_loss([student[0].bfloat16()], [teacher[0].bfloat16()], [weight], None)
    assert half.dtype == torch.float32
    half.backward()
    assert weight.grad.dtype == torch.float32


def test_an_empty_batch_gives_projections_a_zero_gradient():
    weight = torch.ones(6, 4, requires_grad=True)
    value = module_hidden_loss([torch.zeros(0, 3, 4)], [torch.zeros(0, 3, 6)], [weight], None)
    value.backward()
    assert value == 0
    assert (weight.grad == 0).all()


def test_wrong_input_is_refused():
    student, teacher = states(2, 2, 3, 4), states(2, 2, 3, 6)
    weights = [torch.zeros(6, 4)] * 2
    with pytest.raises(InputError, match="student layers and teacher layers differ"):
        module_hidden_loss(student, teacher[:1], weights, None)
    with pytest.raises(InputError, match="student layers and projections differ"):
        module_hidden_loss(student, teacher, weights[:1], None)
    with pytest.raises(InputError, match="no layer pair"):
        module_hidden_loss([], [], None, None)
    with pytest.raises(ShapeError, match=r"pair 0: widths differ: student has 4 channels, teacher 6.*\(6, 4\)"):
        module_hidden_loss(student, teacher, None, None)
    with pytest.raises(ShapeError, match="pair 1: widths differ"):
        module_hidden_loss(student, teacher, [weights[0], None], None)
    with pytest.raises(ShapeError, match=r"projection does not fit; expected \(D_t, D_s\) = \[6, 4\]; got \[4, 6\]"):
        module_hidden_loss(student, teacher, [weights[0].T] * 2, None)
    with pytest.raises(ShapeError, match="hidden states do not fit"):
        module_hidden_loss(student, [h[:, :2] for h in teacher], weights, None)
    with pytest.raises(InputError, match="mask leaves no token"):
        module_hidden_loss(student, teacher, weights, torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ShapeError, match="mask does not fit"):
        module_hidden_loss(student, teacher, weights, torch.ones(3, 2, dtype=torch.bool))
