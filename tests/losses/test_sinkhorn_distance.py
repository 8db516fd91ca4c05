"""SinKD: the numbered checks of its description, groups of tokens, and what is refused."""

import loss_references as ref
import pytest
import torch

from potstill.errors import InputError, ShapeError
from potstill.losses import sinkhorn_kd_loss, sinkhorn_kd_token_loss
from potstill.losses.sinkhorn_distance import _log_plan

ONE = {"temperature": 1.0}


def logits(*rows):
    """Logits of these probabilities at temperature 1."""
    return torch.tensor(rows, dtype=torch.float64).log()


def draw(N, C, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(N, C, generator=draws, dtype=torch.float64) for _ in range(2)]


def distances(student, teacher, temperature=2.0):
    p, q = ref.softmax(student, temperature), ref.softmax(teacher, temperature)
    return (p[:, None] - q[None]).abs().sum(-1)


def plain(student, teacher, temperature=2.0, epsilon=0.1, n_iters=20):
    """The definition: exponentials divided by row and column sums."""
    D = distances(student, teacher, temperature)
    P = torch.exp(-D / epsilon)
    for _ in range(n_iters):
        P = P / P.sum(1, keepdim=True)
        P = P / P.sum(0, keepdim=True)
    return (P * D).sum()


def test_one_row_costs_its_l1_distance():
    assert sinkhorn_kd_loss(logits((0.7, 0.3)), logits((0.5, 0.5)), **ONE).item() == pytest.approx(0.4, abs=1e-12)
    for reduction in ("sum", "mean"):
        student, teacher = draw(1, 5)
        value = sinkhorn_kd_loss(student, teacher, reduction=reduction)
        torch.testing.assert_close(value, distances(student, teacher).sum())


def test_columns_of_the_plan_sum_to_one_and_rows_do_in_the_end():
    D = distances(*draw(7, 5))
    P = _log_plan(D, 0.1, 20).exp()
    assert (P.sum(0) - 1).abs().max() < 1e-12
    assert (P >= 0).all()
    off = [(_log_plan(D, 0.1, n).exp().sum(1) - 1).abs().max().item() for n in (1, 20, 2000)]
    assert off[0] > off[1] > off[2]
    assert off[2] < 1e-12


def test_equal_models_cost_something_unless_their_rows_are_far_apart_or_all_alike():
    near, far = logits((0.6, 0.4), (0.5, 0.5)), logits((0.9, 0.1), (0.1, 0.9))
    assert sinkhorn_kd_loss(near, near, **ONE).item() == pytest.approx(0.0476812, abs=5e-8)
    assert sinkhorn_kd_loss(far, far, **ONE).item() == pytest.approx(3.6e-7, abs=5e-9)
    alike = logits(*[(0.6, 0.3, 0.1)] * 4)
    assert sinkhorn_kd_loss(alike, alike).item() == pytest.approx(0, abs=1e-12)


def test_debiased_equal_models_cost_nothing():
    near = logits((0.6, 0.4), (0.5, 0.5))
    assert sinkhorn_kd_loss(near, near, debiased=True, **ONE).item() == pytest.approx(0, abs=1e-15)
    student, teacher = draw(6, 5)
    wanted = plain(student, teacher) - (plain(student, student) + plain(teacher, teacher)) / 2
    torch.testing.assert_close(sinkhorn_kd_loss(student, teacher, debiased=True), wanted)


def test_hand_value_of_two_rows():
    student, teacher = logits((0.5, 0.5), (0.9, 0.1)), logits((0.6, 0.4), (0.2, 0.8))
    D = distances(student, teacher, 1.0)
    torch.testing.assert_close(D, torch.tensor([[0.2, 0.6], [0.6, 1.4]], dtype=torch.float64))
    P = _log_plan(D, 0.1, 20).exp()
    wanted = torch.tensor([[0.1192, 0.8808], [0.8808, 0.1192]], dtype=torch.float64)
    torch.testing.assert_close(P, wanted, rtol=0, atol=5e-5)
    assert sinkhorn_kd_loss(student, teacher, **ONE).item() == pytest.approx(1.247675, abs=5e-7)


@pytest.mark.parametrize("n_iters", [1, 2, 20])
def test_it_does_not_know_which_teacher_row_belongs_to_which_sample(n_iters):
    student, teacher = draw(6, 5)
    order = torch.tensor([5, 3, 0, 1, 4, 2])
    value = sinkhorn_kd_loss(student, teacher, n_iters=n_iters)
    for moved in ((student, teacher[order]), (student[order], teacher)):
        torch.testing.assert_close(sinkhorn_kd_loss(*moved, n_iters=n_iters), value, rtol=1e-12, atol=0)


def test_a_constant_added_to_a_row_changes_nothing():
    student, teacher = draw(6, 5)
    by_row = torch.arange(6.0, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(sinkhorn_kd_loss(student + by_row, teacher - by_row), sinkhorn_kd_loss(student, teacher))


@pytest.mark.parametrize("debiased", [False, True])
def test_no_gradient_reaches_the_teacher(debiased):
    student, teacher = draw(6, 5)
    student.requires_grad_()
    teacher.requires_grad_()
    sinkhorn_kd_loss(student, teacher, debiased=debiased).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_much_entropy_spreads_the_plan_evenly():
    student, teacher = draw(6, 5)
    D = distances(student, teacher)
    torch.testing.assert_close(_log_plan(D, 1e9, 20).exp(), torch.full((6, 6), 1 / 6, dtype=torch.float64))
    torch.testing.assert_close(sinkhorn_kd_loss(student, teacher, epsilon=1e9), 6 * D.mean())


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "epsilon": 0.5, "n_iters": 3}])
@pytest.mark.parametrize("shape", [(2, 2), (7, 5), (5, 12)])
def test_value_and_gradient_equal_the_plain_reading(options, shape):
    student, teacher = draw(*shape)
    exact, exact_grad = ref.gradient(lambda s: plain(s, teacher, **options), student)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        value, grad = ref.gradient(
            lambda s, dtype=dtype: sinkhorn_kd_loss(s, teacher.to(dtype), **options), student.to(dtype)
        )
        torch.testing.assert_close(value.double(), exact, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(grad.double(), exact_grad, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(sinkhorn_kd_loss(student, teacher, reduction="mean", **options), exact / shape[0])


def test_a_small_epsilon_does_not_underflow():
    # exp(-2 / 0.005) is 0 in float32: divided by its row sum it would be NaN.
    student, teacher = (20 * x for x in draw(6, 5))
    exact = sinkhorn_kd_loss(student, teacher, epsilon=0.005)
    value, grad = ref.gradient(lambda s: sinkhorn_kd_loss(s, teacher.float(), epsilon=0.005), student.float())
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-4)
    assert torch.isfinite(grad).all()
    moderate = draw(6, 5)
    torch.testing.assert_close(sinkhorn_kd_loss(*moderate, epsilon=0.02), plain(*moderate, epsilon=0.02))


def test_masked_rows_leave_both_clouds():
    student, teacher = draw(6, 5)
    mask = torch.tensor([True, False, True, True, False, True])
    value, grad = ref.gradient(lambda s: sinkhorn_kd_loss(s, teacher, mask), student)
    torch.testing.assert_close(value, sinkhorn_kd_loss(student[mask], teacher[mask]))
    assert (grad[~mask] == 0).all()
    value, grad = ref.gradient(lambda s: sinkhorn_kd_loss(s, teacher, torch.zeros(6, dtype=torch.bool)), student)
    assert value == 0
    assert (grad == 0).all()


def test_a_single_class_costs_nothing():
    student, teacher = draw(4, 1)
    value, grad = ref.gradient(lambda s: sinkhorn_kd_loss(s, teacher), student)
    assert value.item() == pytest.approx(0, abs=1e-15)
    assert (grad == 0).all()


def test_a_class_banned_in_both_models_changes_nothing():
    student, teacher = draw(6, 5)
    wall = torch.full((6, 1), -torch.inf, dtype=torch.float64)
    value, grad = ref.gradient(lambda s: sinkhorn_kd_loss(s, teacher), student)
    walled, walled_grad = ref.gradient(
        lambda s: sinkhorn_kd_loss(s, torch.cat([teacher, wall], 1)), torch.cat([student, wall], 1)
    )
    torch.testing.assert_close(walled, value)
    torch.testing.assert_close(walled_grad[:, :-1], grad)


def test_halves_of_a_batch_do_not_add_up_to_the_batch():
    student, teacher = draw(8, 5)
    whole = sinkhorn_kd_loss(student, teacher)
    halves = sinkhorn_kd_loss(student[:4], teacher[:4]) + sinkhorn_kd_loss(student[4:], teacher[4:])
    assert not torch.isclose(whole, halves, rtol=1e-3)


def test_tokens_are_grouped_in_reading_order_and_groups_averaged():
    student, teacher = (x.view(2, 5, 4) for x in draw(10, 4))
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[0, 3:] = False  # 8 tokens count
    rows = [x[mask] for x in (student, teacher)]
    groups = [sinkhorn_kd_loss(rows[0][i], rows[1][i]) for i in (slice(0, 3), slice(3, 6), slice(6, 8))]
    torch.testing.assert_close(sinkhorn_kd_token_loss(student, teacher, mask, group_size=3), torch.stack(groups).mean())
    torch.testing.assert_close(sinkhorn_kd_token_loss(student, teacher, mask), sinkhorn_kd_loss(*rows))
    none = torch.zeros(2, 5, dtype=torch.bool)
    assert sinkhorn_kd_token_loss(student.requires_grad_(), teacher, none).item() == 0


def test_no_group_is_left_with_one_token():
    # 9 tokens in groups of at most 4: a rest of one would cost its plain distance, which knows its own teacher row.
    student, teacher = (x.view(1, 9, 4) for x in draw(9, 4))
    thirds = [slice(0, 3), slice(3, 6), slice(6, 9)]
    wanted = torch.stack([sinkhorn_kd_loss(student[0, i], teacher[0, i]) for i in thirds]).mean()
    torch.testing.assert_close(sinkhorn_kd_token_loss(student, teacher, group_size=4), wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature does not fit"),
        ({"temperature": -1.0}, "temperature does not fit"),
        ({"epsilon": 0.0}, "epsilon does not fit"),
        ({"epsilon": -0.1}, "epsilon does not fit"),
        ({"n_iters": 0}, "n_iters does not fit"),
        ({"n_iters": 2.5}, "n_iters does not fit"),
        ({"reduction": "none"}, '"sum", "mean"; got none'),
    ],
)
def test_options_that_make_no_plan_are_refused(options, message):
    student, teacher = draw(4, 3)
    with pytest.raises(InputError, match=message):
        sinkhorn_kd_loss(student, teacher, **options)
    with pytest.raises(InputError, match=message):
        sinkhorn_kd_token_loss(student[None], teacher[None], **options)


def test_shapes_that_do_not_fit_are_refused():
    student, teacher = draw(4, 3)
    with pytest.raises(ShapeError, match="over the same classes"):
        sinkhorn_kd_loss(student, teacher[:3])
    with pytest.raises(ShapeError, match="over the same classes"):
        sinkhorn_kd_loss(student, teacher[:, :2])
    with pytest.raises(ShapeError, match="sinkhorn_kd_token_loss"):
        sinkhorn_kd_loss(student[None], teacher[None])
    with pytest.raises(ShapeError, match=r"\(B, T, V\)"):
        sinkhorn_kd_token_loss(student, teacher)
    with pytest.raises(ShapeError, match="mask does not fit"):
        sinkhorn_kd_loss(student, teacher, torch.ones(3, dtype=torch.bool))
    with pytest.raises(InputError, match="group_size does not fit"):
        sinkhorn_kd_token_loss(student[None], teacher[None], group_size=0)
