import math

import loss_references as ref
import pytest
import torch

from potstill.errors import InputError, ShapeError
from potstill.losses import class_relation_kd

F64 = torch.float64


def drawn(V=2, H=3, B=5, K=4, U=3, seed=0, scale=1.0):
    draws = torch.Generator().manual_seed(seed)
    old = scale * torch.randn(V, B, K, generator=draws, dtype=F64)
    new = scale * torch.randn(V, H, B, K + U, generator=draws, dtype=F64)
    return old, new, torch.arange(B) % 3 == 1


def plain(old, new, labeled, temperature=0.1, T=4.0):
    """The formula as the card has it, row by row."""
    K, rows = old.shape[-1], []
    for v in range(old.shape[0]):
        for h in range(new.shape[1]):
            for b in range(old.shape[1]):
                if not labeled[b]:
                    n = new[v, h, b] / (temperature * T)
                    p, q = ref.softmax(old[v, b], temperature * T), ref.softmax(n[:K])
                    rows.append((ref.softmax(n)[:K].sum(), -(p * q.log()).sum()))
    mean_w = sum(w for w, _ in rows) / len(rows)
    return T**2 * sum(w / mean_w * ce for w, ce in rows) / len(rows)


@pytest.mark.parametrize(("temperature", "T"), [(0.1, 4.0), (1.0, 1.0), (0.5, 10.0)])
@pytest.mark.parametrize("shape", [(1, 1, 3, 1, 1), (2, 3, 5, 4, 3), (3, 2, 7, 2, 5)])
def test_value_and_gradient_equal_the_plain_reading(shape, temperature, T):
    old, new, labeled = drawn(*shape)
    exact, exact_grad = ref.gradient(lambda n: plain(old, n, labeled, temperature, T), new)
    for dtype, rtol in ((F64, 1e-9), (torch.float32, 5e-5)):
        value, grad = ref.gradient(
            lambda n, dtype=dtype: class_relation_kd(
                old.to(dtype), n, labeled, temperature=temperature, kd_temperature=T
            ),
            new.to(dtype),
        )
        assert value.dtype == dtype
        torch.testing.assert_close(value.double(), exact, rtol=rtol, atol=rtol)
        torch.testing.assert_close(grad.double(), exact_grad, rtol=rtol, atol=rtol * exact_grad.abs().max().item())


def test_a_model_that_knows_no_new_class_and_agrees_costs_the_entropy_of_the_old_one():
    old, new, labeled = drawn()
    new = torch.full_like(new, -torch.inf)
    new[..., :4] = old.unsqueeze(1)
    value, grad = ref.gradient(lambda n: class_relation_kd(old, n, labeled), new)
    p = ref.softmax(old[:, ~labeled], 0.4)
    torch.testing.assert_close(value, 16 * -(p * p.log()).sum(-1).mean())
    assert grad.abs().max() < 1e-12


def test_a_constant_on_all_logits_of_a_row_changes_nothing():
    old, new, labeled = drawn()
    value, grad = ref.gradient(lambda n: class_relation_kd(old, n, labeled), new)
    shift = torch.linspace(-3, 3, 30, dtype=F64).view(2, 3, 5, 1)
    moved, moved_grad = ref.gradient(lambda n: class_relation_kd(old, n, labeled), new + shift)
    torch.testing.assert_close(moved, value)
    torch.testing.assert_close(moved_grad, grad)


def test_more_mass_on_new_classes_lowers_the_weight_of_a_row_alone():
    old, new, labeled = drawn(V=1, H=1, B=2)
    labeled[:] = False

    def rows_alone(n):  # one row has w = 1, so this is its cross-entropy
        return torch.stack([class_relation_kd(old[:, [b]], n[:, :, [b]], labeled[:1]) for b in range(2)])

    raised = new.clone()
    raised[:, :, 0, 4:] += 1.5
    torch.testing.assert_close(rows_alone(raised), rows_alone(new))  # q is as it was
    shares = []
    for n in (new, raised):
        first, second = rows_alone(n)
        value = class_relation_kd(old, n, labeled)
        shares.append(((value - second) / (first - second)).item())  # value = a first + (1 - a) second
    assert shares[1] < shares[0] - 0.05


def test_the_weights_have_mean_one_and_a_row_alone_has_weight_one():
    # Old logits that say nothing make the cross-entropy the same in all rows if the new ones say nothing either.
    old, new, labeled = drawn(K=4)
    old = torch.zeros_like(old)
    new[..., :4] = new[..., :1]  # q uniform, w still differs from row to row
    value = class_relation_kd(old, new, labeled)
    torch.testing.assert_close(value, torch.tensor(16 * math.log(4), dtype=F64), rtol=1e-12, atol=0)
    old, new, _ = drawn(V=1, H=1, B=1)
    p, log_q = ref.softmax(old, 0.4), ref.log_softmax(new[:, 0, :, :4], 0.4)
    one = class_relation_kd(old, new, torch.tensor([False]))
    torch.testing.assert_close(one, -16 * (p * log_q).sum())


def test_labelled_rows_and_the_teacher_get_no_gradient_and_have_no_say():
    old, new, labeled = drawn()
    old.requires_grad_()
    value, grad = ref.gradient(lambda n: class_relation_kd(old, n, labeled), new)
    assert old.grad is None
    assert (grad[:, :, labeled] == 0).all()
    assert (grad[:, :, ~labeled] != 0).any()
    for junk in (7.0, torch.nan, torch.inf):
        spoilt_old, spoilt = old.detach().clone(), new.clone()
        spoilt_old[:, labeled], spoilt[:, :, labeled] = junk, junk
        again, again_grad = ref.gradient(lambda n, o=spoilt_old: class_relation_kd(o, n, labeled), spoilt)
        torch.testing.assert_close(again, value.detach())
        torch.testing.assert_close(again_grad, grad)
    kept = class_relation_kd(old[:, ~labeled], new[:, :, ~labeled], labeled[~labeled])
    torch.testing.assert_close(kept, value)


@pytest.mark.parametrize("x", [-5.0, 0.0, 3.0, 50.0])
def test_hand_value_of_two_known_classes_and_one_new(x):
    old, new = torch.zeros(1, 1, 2), torch.tensor([[[[0.0, 0.0, x]]]])
    labeled = torch.tensor([False])
    one = class_relation_kd(old, new, labeled, temperature=1, kd_temperature=1)
    assert one.item() == pytest.approx(0.693147, abs=5e-7)
    two = class_relation_kd(old, new, labeled, temperature=1, kd_temperature=2)
    assert two.item() == pytest.approx(4 * 0.693147, abs=2e-6)


def test_detaching_the_weight_changes_the_gradient_and_not_the_value():
    old, new, labeled = drawn()
    value, grad = ref.gradient(lambda n: class_relation_kd(old, n, labeled), new)
    fixed, fixed_grad = ref.gradient(lambda n: class_relation_kd(old, n, labeled, detach_weight=True), new)
    torch.testing.assert_close(fixed, value)
    assert (grad - fixed_grad).abs().max() > 1e-3
    assert (fixed_grad[..., 4:] == 0).all()  # new classes are reached through the gate alone


def test_only_labelled_rows_give_zero_with_a_graph():
    old, new, _ = drawn()
    value, grad = ref.gradient(lambda n: class_relation_kd(old, n, torch.ones(5, dtype=torch.bool)), new)
    assert value == 0
    assert value.shape == ()
    assert (grad == 0).all()
    empty = class_relation_kd(old[:, :0], new[:, :, :0], torch.zeros(0, dtype=torch.bool))
    assert empty == 0


def test_rows_that_all_lie_far_in_the_new_classes_stay_finite():
    old, new, labeled = (x.float() if x.is_floating_point() else x for x in drawn())
    new[..., 4:] += 1000.0  # every mass on the known classes is 0 in float32
    value, grad = ref.gradient(lambda n: class_relation_kd(old, n, labeled), new)
    assert torch.isfinite(value)
    assert torch.isfinite(grad).all()


def test_the_gradient_is_that_of_the_value():
    old, new, labeled = drawn(V=1, H=2, B=3, K=2, U=2)
    new.requires_grad_()
    assert torch.autograd.gradcheck(lambda n: class_relation_kd(old, n, labeled), (new,))
    assert torch.autograd.gradgradcheck(lambda n: class_relation_kd(old, n, labeled), (new,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    old, new, labeled = drawn()
    old, new = old.to(dtype), new.to(dtype)
    value, grad = ref.gradient(lambda n: class_relation_kd(old, n, labeled), new)
    exact, exact_grad = ref.gradient(lambda n: class_relation_kd(old.double(), n, labeled), new.double())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=0, atol=0.01 * exact_grad.abs().max().item())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(class_relation_kd(old, new, labeled), value.detach())


def test_wrong_shapes_are_refused():
    old, new, labeled = drawn()
    for bad_new in (new[..., :4], new[..., :3]):  # no new column
        with pytest.raises(ShapeError, match="no new class"):
            class_relation_kd(old, bad_new, labeled)
    with pytest.raises(ShapeError, match="no known"):
        class_relation_kd(old[..., :0], new, labeled)
    with pytest.raises(ShapeError, match="views or rows"):
        class_relation_kd(old[:1], new, labeled)
    with pytest.raises(ShapeError, match="views or rows"):
        class_relation_kd(old[:, :4], new, labeled)
    with pytest.raises(ShapeError, match="axes"):
        class_relation_kd(old, new[:, 0], labeled)
    with pytest.raises(ShapeError, match="no view"):
        class_relation_kd(old, new[:, :0], labeled)
    with pytest.raises(ShapeError, match="labeled_mask"):
        class_relation_kd(old, new, labeled[:4])


def test_wrong_values_are_refused():
    old, new, labeled = drawn()
    with pytest.raises(InputError, match="True = has a label"):
        class_relation_kd(old, new, labeled.long())
    with pytest.raises(InputError, match="class_relation_kd: temperature"):
        class_relation_kd(old, new, labeled, temperature=0)
    with pytest.raises(InputError, match="kd_temperature"):
        class_relation_kd(old, new, labeled, kd_temperature=-1)
    with pytest.raises(InputError, match="teacher is not floating point"):
        class_relation_kd(old.long(), new, labeled)
