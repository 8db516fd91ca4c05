import loss_references as ref
import pytest
import torch
import torch.nn.functional as F

from potstill.errors import InputError, ShapeError
from potstill.losses import swapped_prediction_loss

F64 = torch.float64


def drawn(V=4, large=2, H=3, B=5, C=6, seed=0):
    draws = torch.Generator().manual_seed(seed)
    logits = torch.randn(V, H, B, C, generator=draws, dtype=F64)
    return logits, torch.randn(large, H, B, C, generator=draws, dtype=F64).softmax(-1)


def loss(logits, targets, **options):
    return swapped_prediction_loss(logits, targets, **{"num_large_crops": len(targets), "temperature": 0.1, **options})


def plain(logits, targets, temperature):
    V, H, B, _ = logits.shape
    heads = []
    for h in range(H):
        total = 0
        for v in range(len(targets)):
            for o in range(V):
                if o != v:
                    log_q = [ref.log_softmax(logits[o, h, b], temperature) for b in range(B)]
                    total = total + sum(-(targets[v, h, b] * log_q[b]).sum() for b in range(B)) / B
        heads.append(total / (len(targets) * (V - 1)))
    return torch.stack(heads)


@pytest.mark.parametrize(("V", "large"), [(2, 1), (2, 2), (4, 2), (3, 3)])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_value_and_gradient_equal_the_plain_reading(V, large, temperature):
    logits, targets = drawn(V, large)
    exact, exact_grad = ref.gradient(lambda x: plain(x, targets, temperature).sum(), logits)
    value, grad = ref.gradient(lambda x: loss(x, targets, temperature=temperature).sum(), logits)
    assert loss(logits, targets).shape == (3,)
    torch.testing.assert_close(value, exact)
    torch.testing.assert_close(grad, exact_grad)


def test_identical_views_give_plain_cross_entropy():
    logits, targets = drawn(V=1, large=1)
    views = logits.expand(3, -1, -1, -1)
    expected = [F.cross_entropy(logits[0, h] / 0.1, targets[0, h]) for h in range(3)]
    torch.testing.assert_close(loss(views, targets.expand(2, -1, -1, -1)), torch.stack(expected))


def test_small_crops_predict_and_are_never_a_target():
    logits, targets = drawn(V=3, large=1)
    _, grad = ref.gradient(lambda x: loss(x, targets).sum(), logits)
    assert (grad[0] == 0).all()  # the only large view is the target, of the others
    assert (grad[1:] != 0).any()


def test_heads_do_not_touch_each_other():
    logits, targets = drawn()
    _, grad = ref.gradient(lambda x: loss(x, targets)[1], logits)
    assert (grad[:, [0, 2]] == 0).all()
    torch.testing.assert_close(loss(logits[:, [2, 0]], targets[:, [2, 0]]), loss(logits, targets)[[2, 0]])


def test_a_batch_is_the_mean_of_its_parts():
    logits, targets = drawn(B=6)
    parts = [loss(logits[:, :, i : i + 3], targets[:, :, i : i + 3]) for i in (0, 3)]
    torch.testing.assert_close(loss(logits, targets), sum(parts) / 2)


def test_targets_get_no_gradient():
    logits, targets = drawn()
    targets.requires_grad_()
    loss(logits.requires_grad_(), targets).sum().backward()
    assert targets.grad is None


def test_a_class_that_is_banned_and_not_asked_for_costs_nothing():
    logits, targets = drawn(C=6)
    targets[..., 5] = 0
    logits[..., 5] = -torch.inf
    value, grad = ref.gradient(lambda x: loss(x, targets).sum(), logits)
    torch.testing.assert_close(value, loss(logits[..., :5], targets[..., :5]).sum())
    assert torch.isfinite(grad).all()


def test_no_row_gives_zeros_with_a_graph():
    logits, targets = drawn(B=0)
    value, grad = ref.gradient(lambda x: loss(x, targets).sum(), logits)
    assert value == 0
    assert grad.shape == logits.shape


def test_half_precision_is_computed_in_float32():
    logits, targets = (x.to(torch.bfloat16) for x in drawn())
    value = loss(logits, targets)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), loss(logits.double(), targets.double()), rtol=1e-5, atol=0)


def test_the_gradient_is_that_of_the_value():
    logits, targets = drawn(B=2, H=1, C=3)
    assert torch.autograd.gradcheck(lambda x: loss(x, targets, temperature=0.5), (logits.requires_grad_(),))


def test_wrong_arguments_are_refused():
    logits, targets = drawn()
    with pytest.raises(ShapeError, match="V >= 2"):
        loss(logits[:1], targets[:1])
    for large in (0, 5):
        with pytest.raises(ShapeError, match="num_large_crops"):
            loss(logits, targets, num_large_crops=large)
    with pytest.raises(InputError, match="num_large_crops"):
        loss(logits, targets, num_large_crops=1.5)
    with pytest.raises(InputError, match="temperature"):
        loss(logits, targets, temperature=0)
    with pytest.raises(ShapeError, match="targets do not fit"):
        loss(logits, targets[..., :5])
    with pytest.raises(ShapeError, match="targets do not fit"):
        loss(logits, targets, num_large_crops=1)
    with pytest.raises(ShapeError, match="wrong logits"):
        loss(logits[0], targets)
    with pytest.raises(InputError, match="floating point"):
        loss(logits, targets.long())
