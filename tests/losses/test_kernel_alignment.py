import loss_references as ref
import pytest
import torch

from potstill.errors import InputError, ShapeError
from potstill.losses import cka, cka_loss


def features(n, *widths, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(n, width, generator=draws, dtype=torch.float64) for width in widths]


def orthogonal(width, seed=1):
    return torch.linalg.qr(features(width, width, seed=seed)[0]).Q


KINDS = [("linear", False), ("rbf", False), ("linear", True), ("rbf", True)]
every_kind = pytest.mark.parametrize(("kernel", "debiased"), KINDS)


def test_hand_value_of_three_points():
    # The centred columns x = (-1, 0, 1) and y = (1, -2, 1) are orthogonal, of squared length 2 and 6.
    x = torch.tensor([[-1.0], [0.0], [1.0]])
    y = torch.tensor([[1.0], [-2.0], [1.0]])
    assert cka(x, y).item() == pytest.approx(0, abs=1e-7)
    assert cka(x, torch.cat([x, y], 1)).item() == pytest.approx(2 / 40**0.5, abs=1e-6)


@pytest.mark.parametrize(("n", "d1", "d2"), [(12, 3, 5), (4, 7, 9), (5, 5, 2), (2, 3, 3)])
def test_linear_value_and_gradient_equal_the_plain_reading_on_both_sides_of_n(n, d1, d2):
    x, y = features(n, d1, d2)
    exact, exact_grad = ref.gradient(lambda z: ref.linear_cka(z, y), x)
    for dtype, rtol in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        value, grad = ref.gradient(lambda z, dtype=dtype: cka(z, y.to(dtype)), x.to(dtype))
        torch.testing.assert_close(value.double(), exact, rtol=rtol, atol=0)
        torch.testing.assert_close(grad.double(), exact_grad, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("n", [5, 8])
def test_rbf_value_and_gradient_equal_the_plain_reading(sigma, n):
    x, y = features(n, 3, 6)
    exact, exact_grad = ref.gradient(lambda z: ref.rbf_cka(z, y, sigma), x)
    for dtype, rtol in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        value, grad = ref.gradient(lambda z, dtype=dtype: cka(z, y.to(dtype), kernel="rbf", sigma=sigma), x.to(dtype))
        torch.testing.assert_close(value.double(), exact, rtol=rtol, atol=0)
        torch.testing.assert_close(grad.double(), exact_grad, rtol=rtol, atol=rtol)


def test_debiased_equals_sums_over_distinct_examples():
    # Unbiased HSIC written out: over index tuples without repetition instead of by U-centring.
    x, y = features(6, 4, 3)

    def hsic(K, L):
        n = len(K)
        K, L = (M - torch.diag(M.diagonal()) for M in (K, L))
        ones = torch.ones(n, dtype=torch.float64)
        cross = (ones @ K @ ones) * (ones @ L @ ones) / ((n - 1) * (n - 2))
        return ((K * L).sum() + cross - 2 / (n - 2) * (ones @ K @ L @ ones)) / (n * (n - 3))

    K, L = x @ x.T, y @ y.T
    torch.testing.assert_close(cka(x, y, debiased=True), hsic(K, L) / (hsic(K, K) * hsic(L, L)).sqrt())


def test_debiasing_removes_the_alignment_of_unrelated_features():
    draws = torch.Generator().manual_seed(0)
    pairs = [torch.randn(2, 20, 100, generator=draws) for _ in range(20)]
    plain = torch.stack([cka(x, y) for x, y in pairs]).mean()
    debiased = torch.stack([cka(x, y, debiased=True) for x, y in pairs]).mean()
    assert plain > 0.7
    assert abs(debiased) < 0.05


@every_kind
def test_turning_and_scaling_change_nothing(kernel, debiased):
    x, y = features(9, 4, 6)
    value = cka(x, y, kernel=kernel, debiased=debiased)
    turned = cka(3 * x @ orthogonal(4) + 5, 0.2 * y @ orthogonal(6), kernel=kernel, debiased=debiased)
    torch.testing.assert_close(turned, value)
    assert cka(x, x, kernel=kernel, debiased=debiased).item() == pytest.approx(1, abs=1e-9)


@every_kind
def test_a_general_linear_map_does_change_it(kernel, debiased):
    x, y = features(9, 4, 6)
    stretched = x @ torch.diag(torch.tensor([10.0, 1, 1, 0.1], dtype=torch.float64))
    options = {"kernel": kernel, "debiased": debiased}
    assert abs(cka(stretched, y, **options) - cka(x, y, **options)) > 1e-2


@every_kind
def test_the_loss_is_one_minus_the_measure(kernel, debiased):
    x, y = features(8, 4, 6)
    options = {"kernel": kernel, "debiased": debiased}
    torch.testing.assert_close(cka_loss(x, y, **options), 1 - cka(x, y, **options))


def test_further_axes_are_counted_as_examples():
    x, y = features(12, 4, 6)
    torch.testing.assert_close(cka(x.reshape(3, 4, 4), y.reshape(3, 4, 6)), cka(x, y))
    mask = torch.arange(12) % 5 != 0
    torch.testing.assert_close(
        cka(x.reshape(3, 4, 4), y.reshape(3, 4, 6), mask=mask.reshape(3, 4)), cka(x[mask], y[mask])
    )


@every_kind
def test_features_without_variance_are_like_nothing(kernel, debiased):
    _, y = features(6, 4, 3)
    value, grad = ref.gradient(lambda x: cka(x, y, kernel=kernel, debiased=debiased), torch.full((6, 4), 2.0).double())
    assert value.item() == pytest.approx(0, abs=1e-9)
    assert torch.isfinite(grad).all()


def test_coinciding_examples_keep_the_rbf_kernel_finite():
    x, y = features(6, 4, 3)
    x[1:] = x[1]  # most pairs coincide: the median distance is 0
    value, grad = ref.gradient(lambda z: cka(z, y, kernel="rbf"), x)
    assert torch.isfinite(value)
    assert torch.isfinite(grad).all()


def test_too_few_examples_are_refused_and_none_at_all_gives_zero():
    x, y = features(4, 3, 2)
    for function in (cka, cka_loss):
        with pytest.raises(ShapeError, match="n >= 2; got n = 1"):
            function(x[:1], y[:1])
        with pytest.raises(ShapeError, match="n >= 4; got n = 3"):
            function(x[:3], y[:3], debiased=True)
        with pytest.raises(ShapeError, match="n = 1"):
            function(x, y, mask=torch.tensor([False, True, False, False]))
        leaf = x[:0].clone().requires_grad_()
        value = function(leaf, y[:0])
        value.backward()
        assert value == 0
        assert torch.isfinite(function(x[:2], y[:2]))
        assert torch.isfinite(function(x, y, debiased=True))


def test_wrong_input_is_refused():
    x, y = features(4, 3, 2)
    with pytest.raises(ShapeError, match=r"student \[4, 3\], teacher \[3, 2\]"):
        cka(x, y[:3])
    with pytest.raises(ShapeError, match="numbers of examples"):
        cka(x[:, 0], y[:, 0])
    with pytest.raises(InputError, match=r'unknown kernel.*"linear", "rbf"'):
        cka_loss(x, y, kernel="polynomial")
    with pytest.raises(InputError, match="sigma"):
        cka(x, y, kernel="rbf", sigma=0)
