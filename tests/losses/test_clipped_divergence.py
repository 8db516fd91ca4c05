import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import potstill.losses._common
from potstill.errors import InputError, ShapeError
from potstill.losses import QuantileNet, dac_kl_loss, dac_kl_tokens, kd_kl

TEACHER = torch.tensor([[[0.5, 0.3, 0.15, 0.05]]], dtype=torch.float64).log()
STUDENT = torch.tensor([[[0.4, 0.4, 0.1, 0.1]]], dtype=torch.float64).log()


def drawn(*shape, seed=0, scale=2.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(student, teacher, lower, upper, target, mode, s):
    """One token, as it is written down."""
    lp, lq = teacher.log_softmax(-1).tolist(), student.log_softmax(-1).tolist()
    x, V = sorted(lp), len(lp)

    def quantile(level):
        place = level * (V - 1)
        i = math.floor(place)
        return x[i] + (place - i) * (x[min(i + 1, V - 1)] - x[i])

    low, high = quantile(lower), quantile(upper)
    if mode == "hard":
        m = [float(low <= v <= high) for v in lp]
    else:
        m = [1 / (1 + math.exp(-(v - low) / s - 2)) / (1 + math.exp(-(high - v) / s - 2)) for v in lp]
    if target >= 0:
        m[target] = 1.0
    P = sum(g * math.exp(v) for g, v in zip(m, lp))
    Q = sum(g * math.exp(v) for g, v in zip(m, lq))
    if P == 0:
        return 0.0, 0.0, 0.0
    kl = sum(g * math.exp(v) / P * (v - math.log(P) - w + math.log(Q)) for g, v, w in zip(m, lp, lq))
    return kl, P, sum(m)


@pytest.mark.parametrize(
    ("lower", "target", "value"), [(0.0, -100, 0.0514296), (0.5, -100, 0.0315839), (0.5, 3, 0.0461111)]
)
def test_hand_values(lower, target, value):
    found = dac_kl_loss(STUDENT, TEACHER, lower, 1.0, torch.tensor([[target]]))
    assert found.item() == pytest.approx(value, abs=5e-8)


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("T", [1.0, 2.0])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), V=st.integers(2, 9), lower=st.floats(0, 0.6), band=st.floats(0.05, 0.4))
def test_value_coverage_and_kept_classes_equal_the_plain_reading(mode, T, seed, V, lower, band):
    student, teacher = drawn(2, 3, V, seed=seed), drawn(2, 3, V, seed=seed + 1)
    targets = torch.randint(-1, V, (2, 3), generator=torch.Generator().manual_seed(seed))
    tokens = dac_kl_tokens(student, teacher, lower, lower + band, targets, temperature=T, mode=mode, sharpness=0.3)
    for i, (s, t, y) in enumerate(zip(student.view(-1, V), teacher.view(-1, V), targets.flatten().tolist())):
        kl, coverage, kept = plain(s / T, t / T, lower, lower + band, y, mode, 0.3)
        assert tokens.kl[i].item() == pytest.approx(T**2 * kl, abs=1e-9)
        assert tokens.coverage[i].item() == pytest.approx(coverage, abs=1e-9)
        assert tokens.kept[i].item() == pytest.approx(kept, abs=1e-9)
    loss = dac_kl_loss(student, teacher, lower, lower + band, targets, temperature=T, mode=mode, sharpness=0.3)
    torch.testing.assert_close(loss, tokens.kl.mean())


def test_a_band_of_everything_is_the_usual_divergence():
    student, teacher = drawn(2, 5, 11), drawn(2, 5, 11, seed=1)
    mask = torch.rand(2, 5, generator=torch.Generator().manual_seed(2)) < 0.6
    targets = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(3))
    for given_targets in (None, targets):
        found = dac_kl_loss(student, teacher, 0.0, 1.0, given_targets, mask, temperature=2.0)
        torch.testing.assert_close(found, kd_kl(student, teacher, temperature=2.0, mask=mask))


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_equal_distributions_cost_nothing_and_pull_nowhere(mode):
    teacher = drawn(3, 4, 20)
    student = (teacher + drawn(3, 4, 1, seed=1, scale=9)).requires_grad_()
    loss = dac_kl_loss(student, teacher, 0.3, 0.95, mode=mode)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-12


@pytest.mark.parametrize("mode", ["hard", "soft"])
@given(seed=st.integers(0, 2**31), close=st.booleans())
@settings(max_examples=25, deadline=None)
def test_it_is_never_negative(mode, seed, close):
    teacher = drawn(1, 6, 30, seed=seed).float()
    student = teacher + drawn(1, 6, 30, seed=seed + 1).float() * (1e-3 if close else 1)
    assert dac_kl_tokens(student, teacher, 0.5, 0.97, mode=mode).kl.min() >= 0


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_gradients_equal_finite_differences(mode):
    student, teacher = drawn(2, 2, 7).requires_grad_(), drawn(2, 2, 7, seed=1)
    lower, upper = torch.full((2, 2), 0.31, dtype=torch.float64), torch.full((2, 2), 0.87, dtype=torch.float64)
    if mode == "soft":
        lower.requires_grad_()
        upper.requires_grad_()

    def value(s, low, high):
        tokens = dac_kl_tokens(s, teacher, low, high, mode=mode)
        return tokens.kl, tokens.coverage

    assert torch.autograd.gradcheck(value, (student, lower, upper))


def test_no_gradient_reaches_the_teacher():
    student, teacher = drawn(2, 3, 9).requires_grad_(), drawn(2, 3, 9, seed=1).requires_grad_()
    tokens = dac_kl_tokens(student, teacher, 0.2, 0.9, mode="soft")
    (tokens.kl.sum() + tokens.coverage.sum()).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_the_order_of_the_vocabulary_does_not_matter(mode):
    student, teacher = drawn(2, 3, 9), drawn(2, 3, 9, seed=1)
    targets = torch.randint(0, 9, (2, 3), generator=torch.Generator().manual_seed(3))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(4))
    moved = dac_kl_loss(student[..., order], teacher[..., order], 0.4, 0.9, order.argsort()[targets], mode=mode)
    torch.testing.assert_close(moved, dac_kl_loss(student, teacher, 0.4, 0.9, targets, mode=mode))


def test_a_very_sharp_soft_gate_is_the_hard_one():
    student, teacher = drawn(2, 3, 9), drawn(2, 3, 9, seed=1)
    hard = dac_kl_tokens(student, teacher, 0.33, 0.81)
    soft = dac_kl_tokens(student, teacher, 0.33, 0.81, mode="soft", sharpness=1e-6)
    torch.testing.assert_close(soft.kl, hard.kl)
    torch.testing.assert_close(soft.kept, hard.kept)


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_sorting_only_the_largest_classes_changes_nothing(mode):
    student, teacher = drawn(2, 3, 400), drawn(2, 3, 400, seed=1)
    lower = torch.tensor([[0.9, 0.95, 0.97], [0.91, 0.92, 0.99]], dtype=torch.float64)
    some = dac_kl_tokens(student, teacher, lower, 0.999, mode=mode)
    first = lower.clone()
    first[0, 0] = 0.0  # makes all of them be sorted
    whole = dac_kl_tokens(student, teacher, first, 0.999, mode=mode)
    for got, expected in zip(some, whole):
        torch.testing.assert_close(got[1:], expected[1:])


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_chunks_change_neither_value_nor_gradient(mode, monkeypatch):
    student, teacher = drawn(3, 5, 8), drawn(3, 5, 8, seed=1)
    lower = torch.full((3, 5), 0.3, dtype=torch.float64)
    mask = torch.rand(3, 5, generator=torch.Generator().manual_seed(2)) < 0.8

    def run():
        s, low = student.clone().requires_grad_(), lower.clone().requires_grad_()
        tokens = dac_kl_tokens(s, teacher, low, 0.9, mask=mask, mode=mode)
        (tokens.kl.sum() + tokens.coverage.square().sum()).backward()
        return *tokens, s.grad, low.grad

    whole = run()
    monkeypatch.setattr(potstill.losses._common, "CHUNK", 24)  # three tokens
    for got, expected in zip(run(), whole):
        torch.testing.assert_close(got, expected)


def test_what_is_masked_does_not_leak():
    student, teacher = drawn(2, 4, 6), drawn(2, 4, 6, seed=1)
    lower = torch.full((2, 4), 0.2, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0]]).bool()
    clean = dac_kl_loss(student, teacher, lower, 0.9, mask=mask, mode="soft")
    spoilt = [x.masked_fill(~mask[..., None], math.nan).requires_grad_() for x in (student, teacher)]
    loss = dac_kl_loss(*spoilt, lower.masked_fill(~mask, math.nan), 0.9, mask=mask, mode="soft")
    loss.backward()
    torch.testing.assert_close(loss, clean)
    assert spoilt[0].grad[~mask].abs().sum() == 0
    assert spoilt[0].grad.isfinite().all()


def test_nothing_to_count_gives_zero_with_a_graph():
    student = drawn(2, 3, 5).requires_grad_()
    levels = torch.full((2, 3), 0.5, dtype=torch.float64).requires_grad_()
    mask = torch.zeros(2, 3, dtype=torch.bool)
    loss = dac_kl_loss(student, drawn(2, 3, 5, seed=1), levels, 1.0, mask=mask, mode="soft")
    loss.backward()
    assert loss == 0
    assert student.grad.abs().sum() == 0
    assert levels.grad.abs().sum() == 0  # a rank without tokens has gradients for its network all the same


def test_one_class_costs_nothing():
    assert dac_kl_loss(drawn(1, 2, 1), drawn(1, 2, 1, seed=1), 0.2, 0.8).item() == 0


def test_a_band_between_two_classes_keeps_nothing_and_costs_nothing():
    student = STUDENT.clone().requires_grad_()
    tokens = dac_kl_tokens(student, TEACHER, 0.5, 0.6)  # places 1.5 to 1.8 of 0 to 3
    tokens.kl.sum().backward()
    assert [x.item() for x in tokens] == [0, 0, 0]
    assert student.grad.abs().sum() == 0
    assert dac_kl_loss(STUDENT, TEACHER, 0.5, 0.6, torch.tensor([[1]])).item() == 0  # one class is all of it


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_banned_classes_leave_everything_finite(mode):
    student, teacher = drawn(2, 3, 8), drawn(2, 3, 8, seed=1)
    student[..., :3] = teacher[..., :3] = -math.inf
    student.requires_grad_()
    levels = torch.full((2, 3), 0.2, dtype=torch.float64).requires_grad_()  # between two banned classes
    tokens = dac_kl_tokens(student, teacher, levels, 0.95, mode=mode)
    (tokens.kl.sum() + tokens.coverage.sum()).backward()
    assert tokens.kl.isfinite().all()
    assert student.grad[..., 3:].isfinite().all()
    assert mode == "hard" or levels.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    student, teacher = drawn(2, 3, 50).to(dtype), drawn(2, 3, 50, seed=1).to(dtype)
    loss = dac_kl_loss(student.requires_grad_(), teacher, 0.5, 0.99)
    loss.backward()
    assert loss.dtype == torch.float32
    assert student.grad.dtype == dtype
    torch.testing.assert_close(
        loss.double(), dac_kl_loss(student.double(), teacher.double(), 0.5, 0.99), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"teacher_logits": torch.zeros(1, 1, 5)}, ShapeError, "vocabularies differ"),
        ({"teacher_logits": torch.zeros(1, 2, 4)}, ShapeError, "leading shapes"),
        ({"lower": 0.7, "upper": 0.7}, InputError, "no band"),
        ({"lower": -0.1}, InputError, "no band"),
        ({"upper": 1.1}, InputError, "no band"),
        ({"lower": math.nan}, InputError, "no band"),
        ({"lower": torch.zeros(2, 1)}, ShapeError, "lower does not fit"),
        ({"mode": "firm"}, InputError, "unknown mode"),
        ({"sharpness": 0.0}, InputError, "sharpness"),
        ({"temperature": 0.0}, InputError, "temperature"),
        ({"targets": torch.tensor([[4]])}, InputError, "no class"),
        ({"targets": torch.tensor([[0.5]])}, InputError, "class ids"),
        ({"targets": torch.tensor([0])}, ShapeError, "targets do not fit"),
        ({"mask": torch.ones(1, 1)}, InputError, "mask is not bool"),
        ({"mask": torch.ones(2, 1).bool()}, ShapeError, "mask does not fit"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, message):
    options = {"student_logits": STUDENT, "teacher_logits": TEACHER, "lower": 0.2, "upper": 0.9, **change}
    with pytest.raises(error, match=message):
        dac_kl_loss(**options)
    with pytest.raises(ValueError):
        dac_kl_tokens(**options)


def _trained(penalty, steps=400):
    """The levels trained alone on random logits: share of the teacher that passes, and classes kept, at the end."""
    torch.manual_seed(0)
    student, teacher = 2 * torch.randn(8, 16, 200), 2 * torch.randn(8, 16, 200)
    net = QuantileNet()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(steps):
        tokens = dac_kl_tokens(student, teacher, *net(student, teacher), mode="soft")
        loss = tokens.kl.mean() + penalty * (0.9 - tokens.coverage).relu().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tokens.coverage.mean().item(), tokens.kept.mean().item()


def test_without_a_penalty_the_gate_closes_and_with_one_it_stays_open():
    closed, few = _trained(0.0)
    opened, many = _trained(10.0)
    assert closed < 0.7
    assert opened >= 0.85
    assert many > 3 * few


def test_the_network_starts_with_its_band_and_sees_neither_model_s_gradient():
    net = QuantileNet(M=8, hidden=5)
    student, teacher = drawn(2, 3, 30).requires_grad_(), drawn(2, 3, 30, seed=1).requires_grad_()
    lower, upper = net(student, teacher)
    assert lower.shape == upper.shape == (2, 3)
    torch.testing.assert_close(upper, torch.full_like(upper, 0.9995))
    torch.testing.assert_close(lower, torch.full_like(lower, 0.9))
    (lower.sum() + upper.sum()).backward()
    assert student.grad is None
    assert teacher.grad is None
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("V", [1, 5, 200])
@pytest.mark.parametrize("bias", [(-200.0, 200.0), (200.0, 200.0), (0.0, -200.0)])
def test_the_levels_are_a_band_however_far_the_network_goes(V, bias):
    net = QuantileNet(M=16, hidden=4)
    nn.init.normal_(net.layers[-1].weight)
    with torch.no_grad():
        net.layers[-1].bias.copy_(torch.tensor(bias))
    lower, upper = net(torch.randn(4, V), torch.randn(4, V))
    assert (lower >= 0).all()
    assert (lower < upper).all()
    assert (upper <= 1).all()


def test_the_network_takes_half_precision_parameters_and_banned_classes():
    net = QuantileNet(M=4).to(torch.bfloat16)
    teacher = torch.randn(3, 9).masked_fill(torch.arange(9) > 1, -math.inf)
    levels = net(torch.randn(3, 9).bfloat16(), teacher.bfloat16())
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in levels)


@pytest.mark.parametrize("size", [{"M": 0}, {"hidden": 0}, {"M": 2.5}, {"M": True}])
def test_a_network_of_no_width_is_refused(size):
    with pytest.raises(InputError, match="QuantileNet"):
        QuantileNet(**size)
