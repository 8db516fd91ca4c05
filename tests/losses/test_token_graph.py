"""TRG: the numbered checks of its description, and what is refused. Sampling is in ``test_token_sampling.py``."""

import math

import loss_references as ref
import pytest
import torch

from potstill.errors import InputError, ShapeError
from potstill.losses import trg_global_loss, trg_inner_loss, trg_local_loss
from potstill.losses.token_graph import _graph


def tokens(*rows):
    return torch.tensor(rows, dtype=torch.float64).unsqueeze(1)


def draw(*shapes, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=draws, dtype=torch.float64) for shape in shapes]


def turn(D):
    return torch.linalg.qr(draw((D, D), seed=9)[0]).Q


def plain_graph(x, k, sigma):
    M = len(x)
    d = [[((x[i] - x[j]) ** 2).sum() for j in range(M)] for i in range(M)]
    if sigma == "mean":
        sigma = (sum(sum(row) for row in d) / (M * (M - 1))).detach()
    A = [[torch.zeros((), dtype=x.dtype)] * M for _ in range(M)]
    for j in range(M):
        for i in sorted((i for i in range(M) if i != j), key=lambda i: (d[i][j].item(), i))[:k]:
            A[i][j] = torch.exp(-d[i][j] / (2 * sigma))
    return torch.stack([torch.stack(row) for row in A])


def graph(x, k, sigma):
    near, weights = _graph(x, k, sigma)
    return torch.zeros(len(x), len(x), dtype=x.dtype).scatter(0, near, weights)


def plain_local(student, teacher, k, sigma="mean"):
    logs = [torch.log_softmax(plain_graph(x, k, sigma), 1) for x in (student, teacher)]
    return sum(ref.log_kl(p, q) for p, q in zip(*logs)) / len(student)


def test_hand_graph_and_local_loss_of_three_tokens():
    near, far = math.exp(-1), math.exp(-4)
    student = torch.tensor([[0, near, 0], [near, 0, far], [0, 0, 0]], dtype=torch.float64)
    teacher = torch.tensor([[0, 0, 0], [far, 0, near], [0, near, 0]], dtype=torch.float64)
    torch.testing.assert_close(graph(tokens(0, 1, 3), 1, 0.5), student)
    torch.testing.assert_close(graph(tokens(0, 2, 3), 1, 0.5), teacher)
    value = trg_local_loss(tokens(0, 1, 3), tokens(0, 2, 3), k=1, sigma=0.5)
    assert value.item() == pytest.approx(0.0248925, abs=5e-8)


@pytest.mark.parametrize("sigma", ["mean", 0.7])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_local_value_and_gradient_equal_the_plain_reading(k, sigma):
    student, teacher = draw((7, 3), (7, 5))
    exact, exact_grad = ref.gradient(lambda s: plain_local(s, teacher, k, sigma), student)
    value, grad = ref.gradient(lambda s: trg_local_loss(s, teacher, k, sigma), student)
    torch.testing.assert_close(value, exact)
    torch.testing.assert_close(grad, exact_grad)


def test_equal_tokens_cost_nothing_locally_and_within_an_image():
    (student,) = draw((3, 8, 4))
    assert trg_local_loss(student.flatten(0, 1), student.flatten(0, 1)).item() == pytest.approx(0, abs=1e-12)
    assert trg_inner_loss(student, student).item() == 0


def test_scale_and_rotation_of_either_model_do_not_matter_to_the_mean_graph():
    student, teacher = draw((20, 4), (20, 6))
    value = trg_local_loss(student, teacher)
    assert value > 1e-4
    torch.testing.assert_close(trg_local_loss(7 * student @ turn(4), teacher), value)
    torch.testing.assert_close(trg_local_loss(student, 0.01 * teacher @ turn(6)), value)
    assert not torch.isclose(
        trg_local_loss(7 * student, teacher, sigma=1.0), trg_local_loss(student, teacher, sigma=1.0)
    )


def test_scale_does_not_matter_to_the_global_loss():
    student, teacher = draw((12, 5), (12, 5))
    value = trg_global_loss(student, teacher, None, 0.2)
    torch.testing.assert_close(trg_global_loss(9 * student, 0.1 * teacher, None, 0.2), value)


def test_hand_value_of_two_orthogonal_tokens():
    assert trg_global_loss(torch.eye(2), torch.eye(2), None, 1.0).item() == pytest.approx(math.log(1 + 1 / math.e))
    assert trg_global_loss(torch.eye(2), torch.eye(2), None, 1.0).item() == pytest.approx(0.313262, abs=5e-7)


def test_tokens_that_tell_nothing_apart_cost_about_the_log_of_their_number():
    student, teacher = draw((64, 512), (64, 512))
    assert trg_global_loss(student, teacher, None, 1.0).item() == pytest.approx(math.log(64), abs=0.02)


@pytest.mark.parametrize("loss", [trg_local_loss, lambda s, t: trg_global_loss(s, t, None, 0.3)])
def test_moving_the_tokens_of_both_models_alike_changes_nothing(loss):
    student, teacher = draw((20, 4), (20, 4))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(loss(student[order], teacher[order]), loss(student, teacher))
    assert not torch.isclose(loss(student[order], teacher), loss(student, teacher))


def test_hand_context_of_two_tokens():
    student, teacher = tokens(1, 0)[None], tokens(0, 0)[None]
    assert trg_inner_loss(student, teacher).item() == pytest.approx(0.0266940, abs=5e-8)
    gap = 0.731059 - 0.5
    assert trg_inner_loss(student, teacher).item() == pytest.approx(2 * gap**2 / 4, abs=1e-6)


def test_the_context_scales_products_by_the_root_of_each_width():
    student, teacher = draw((2, 5, 4), (2, 5, 9))
    rows = [torch.softmax(x @ x.transpose(1, 2) / x.shape[-1] ** 0.5, -1) for x in (student, teacher)]
    torch.testing.assert_close(trg_inner_loss(student, teacher), (rows[0] - rows[1]).square().mean())


def test_all_other_tokens_as_neighbours_make_a_symmetric_graph():
    (x,) = draw((9, 4))
    A = graph(x, 8, "mean")
    torch.testing.assert_close(A, A.T)
    assert (A.diagonal() == 0).all()
    assert ((A > 0).sum(0) == 8).all()
    nearest = graph(x, 3, "mean")
    assert ((nearest > 0).sum(0) == 3).all()
    assert not torch.equal(nearest, nearest.T)


def test_of_equally_near_tokens_the_first_are_neighbours():
    A = graph(tokens(0, 1, -1, 1, -1), 2, 0.5)
    assert (A[:, 0] > 0).tolist() == [False, True, True, False, False]


def test_tokens_that_are_all_alike_have_edges_of_one():
    x = torch.ones(5, 3)
    value, grad = ref.gradient(lambda s: trg_local_loss(s, x, 2), x)
    assert graph(x, 2, "mean").unique().tolist() == [0, 1]
    assert value == 0
    assert torch.isfinite(grad).all()


def test_masked_tokens_have_no_gradient():
    student, teacher = draw((3, 6, 4), (3, 6, 5))
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[0, 2:] = mask[1, 5] = False
    _, grad = ref.gradient(lambda s: trg_inner_loss(s, teacher, mask), student)
    assert (grad[~mask] == 0).all()
    assert (grad[mask] != 0).any(1).all()
    flat = [x.flatten(0, 1) for x in (student, teacher)]
    value, grad = ref.gradient(lambda s: trg_local_loss(s, flat[1], 2, mask=mask.flatten()), flat[0])
    torch.testing.assert_close(value, trg_local_loss(student[mask], teacher[mask], 2))
    assert (grad[~mask.flatten()] == 0).all()


def test_masked_tokens_are_neither_rows_nor_columns_of_a_context():
    student, teacher = draw((2, 6, 4), (2, 6, 5))
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, 2:] = False
    short = trg_inner_loss(student[:1, :2], teacher[:1, :2])
    long = trg_inner_loss(student[1:], teacher[1:])
    torch.testing.assert_close(trg_inner_loss(student, teacher, mask), (4 * short + 36 * long) / 40)


def test_the_gradient_reaches_the_projection_and_the_student_but_not_the_teacher():
    student, teacher, W = (x.requires_grad_() for x in draw((10, 3), (10, 5), (5, 3)))
    total = trg_local_loss(student, teacher, 3) + trg_global_loss(student, teacher, W, 0.1)
    total = total + trg_inner_loss(student[None], teacher[None])
    total.backward()
    assert teacher.grad is None
    assert (student.grad.abs().sum(1) > 0).all()
    assert W.grad.abs().sum() > 0


def test_a_projection_is_applied_before_the_cosine():
    student, teacher, W = draw((10, 3), (10, 5), (5, 3))
    torch.testing.assert_close(
        trg_global_loss(student, teacher, W, 0.1), trg_global_loss(student @ W.T, teacher, None, 0.1)
    )


def test_a_dead_token_is_like_no_other_and_keeps_the_gradient_finite():
    student, teacher = draw((5, 3), (5, 3))
    student[2] = 0
    value, grad = ref.gradient(lambda s: trg_global_loss(s, teacher, None, 0.1), student)
    assert torch.isfinite(value)
    assert grad.abs().max() < 100


def test_halves_of_a_batch_do_not_average_to_the_batch():
    student, teacher = draw((20, 4), (20, 4))
    for loss in (lambda s, t: trg_local_loss(s, t, 3), lambda s, t: trg_global_loss(s, t, None, 0.3)):
        halves = (loss(student[:10], teacher[:10]) + loss(student[10:], teacher[10:])) / 2
        assert not torch.isclose(loss(student, teacher), halves, rtol=1e-3)


@pytest.mark.parametrize("k", [0, 5, -1, 1.5, True])
def test_a_number_of_neighbours_that_cannot_be_is_refused(k):
    with pytest.raises(InputError, match="1 to 4 neighbours of 5 tokens"):
        trg_local_loss(*draw((5, 2), (5, 2)), k)


@pytest.mark.parametrize("M", [0, 1])
def test_fewer_than_two_tokens_are_refused(M):
    student, teacher = draw((M, 2), (M, 2))
    with pytest.raises(ShapeError, match=rf"M >= 2; got M = {M}"):
        trg_local_loss(student, teacher, 1)
    with pytest.raises(ShapeError, match=rf"M >= 2; got M = {M}"):
        trg_global_loss(student, teacher, None, 1.0)


def test_wrong_scales_and_temperatures_are_refused():
    student, teacher = draw((5, 2), (5, 2))
    for sigma in (0, -1.0, math.nan):
        with pytest.raises(InputError, match="sigma does not fit"):
            trg_local_loss(student, teacher, 2, sigma)
    with pytest.raises(InputError, match='"mean"; got median'):
        trg_local_loss(student, teacher, 2, "median")
    for tau in (0, -0.1):
        with pytest.raises(InputError, match="tau does not fit"):
            trg_global_loss(student, teacher, None, tau)


def test_shapes_that_do_not_fit_are_refused():
    student, teacher, W = draw((5, 2), (5, 3), (3, 3))
    with pytest.raises(ShapeError, match="Pass a projection of shape"):
        trg_global_loss(student, teacher, None, 0.1)
    with pytest.raises(ShapeError, match=r"\[3, 2\]; got \[3, 3\]"):
        trg_global_loss(student, teacher, W, 0.1)
    for loss in (lambda s, t: trg_local_loss(s, t, 1), lambda s, t: trg_global_loss(s, t, W, 0.1)):
        with pytest.raises(ShapeError, match="tokens do not fit"):
            loss(student, teacher[:4])
        with pytest.raises(ShapeError, match="tokens do not fit"):
            loss(student[None], teacher[None])
    with pytest.raises(ShapeError, match="tokens do not fit"):
        trg_inner_loss(student[None], teacher[None, :4])
    with pytest.raises(ShapeError, match="tokens do not fit"):
        trg_inner_loss(student, teacher)


def test_an_image_without_a_token_is_refused():
    student, teacher = draw((2, 3, 2), (2, 3, 2))
    mask = torch.tensor([[True, True, True], [False, False, False]])
    with pytest.raises(InputError, match="an image has no token"):
        trg_inner_loss(student, teacher, mask)
