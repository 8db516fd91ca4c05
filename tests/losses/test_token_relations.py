import loss_references as ref
import pytest
import torch

from potstill.errors import InputError, ShapeError
from potstill.losses import token_relation_loss


def qkv(B, n, D, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(B, n, D, generator=draws, dtype=torch.float64) for _ in range(3)]


def plain(student, teacher, R, kept):
    """Head by head and row by row."""
    values = []
    for b, places in enumerate(kept):
        for first, second in ((0, 1), (2, 2)):
            for r in range(R):
                rows = []
                for x, ids in ((student, range(len(places))), (teacher, places)):
                    width = x[0].shape[-1] // R
                    cut = slice(r * width, (r + 1) * width)
                    a, c = x[first][b, list(ids), cut], x[second][b, list(ids), cut]
                    rows.append(ref.log_softmax(torch.stack([(row * c).sum(1) for row in a]) / width**0.5))
                values += [ref.log_kl(t, s) for s, t in zip(*rows)]
    return sum(values) / len(values)


@pytest.mark.parametrize("R", [1, 2, 4])
def test_value_and_gradient_equal_the_plain_reading(R):
    student, teacher = qkv(2, 3, 4), qkv(2, 5, 8, seed=1)
    keep = torch.tensor([[0, 2, 3], [4, 1, 0]])
    exact, exact_grad = ref.gradient(lambda q: plain([q, *student[1:]], teacher, R, keep.tolist()), student[0])
    value, grad = ref.gradient(lambda q: token_relation_loss(q, *student[1:], *teacher, R, keep), student[0])
    torch.testing.assert_close(value, exact)
    torch.testing.assert_close(grad, exact_grad)


def test_equal_projections_cost_nothing():
    x = qkv(2, 4, 6)
    assert token_relation_loss(*x, *x, relation_heads=3) == 0


def test_equal_gram_matrices_of_another_width_cost_nothing():
    student = qkv(2, 4, 6)

    def widened(x):  # each head of width 3 becomes one of width 6 whose scaled products are the same
        heads = x.reshape(2, 4, 2, 3) * 2**0.25
        return torch.cat([heads, torch.zeros_like(heads)], -1).reshape(2, 4, 12)

    value = token_relation_loss(*student, *[widened(x) for x in student], relation_heads=2)
    assert value.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_never_negative(seed):
    assert token_relation_loss(*qkv(2, 4, 6, seed), *qkv(2, 4, 8, seed + 50), relation_heads=2) > 0


def test_moving_tokens_of_both_sides_alike_changes_nothing():
    student, teacher = qkv(2, 4, 6), qkv(2, 4, 8, seed=1)
    order = [2, 0, 3, 1]
    moved = token_relation_loss(*[x[:, order] for x in (*student, *teacher)], 2)
    torch.testing.assert_close(moved, token_relation_loss(*student, *teacher, 2))


def test_turning_features_inside_a_relation_head_changes_nothing():
    student, teacher = qkv(2, 4, 6), qkv(2, 4, 8, seed=1)
    draws = torch.Generator().manual_seed(3)
    turn = torch.block_diag(*[torch.linalg.qr(torch.randn(3, 3, generator=draws, dtype=torch.float64)).Q] * 2)
    turned = token_relation_loss(*[x @ turn for x in student], *teacher, 2)
    torch.testing.assert_close(turned, token_relation_loss(*student, *teacher, 2))


def test_other_widths_run_and_no_gradient_reaches_the_teacher():
    student, teacher = qkv(2, 4, 6), qkv(2, 4, 8, seed=1)
    for x in (*student, *teacher):
        x.requires_grad_()
    token_relation_loss(*student, *teacher, 2).backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in student)
    assert all(x.grad is None for x in teacher)


def test_keeping_every_token_equals_no_ids():
    student, teacher = qkv(2, 4, 6), qkv(2, 4, 8, seed=1)
    every = torch.arange(4).expand(2, 4)
    assert token_relation_loss(*student, *teacher, 2, every) == token_relation_loss(*student, *teacher, 2)


@pytest.mark.parametrize("junk", [7.0, float("nan")])
def test_the_teachers_other_tokens_change_nothing(junk):
    student, teacher = qkv(2, 2, 6), qkv(2, 4, 8, seed=1)
    keep = torch.tensor([[0, 2], [1, 3]])
    value = token_relation_loss(*student, *teacher, 2, keep)
    for x in teacher:
        x[0, 1], x[1, 2] = junk, junk
    assert token_relation_loss(*student, *teacher, 2, keep) == value


def test_masked_tokens_are_neither_queries_nor_keys():
    student, teacher = qkv(1, 4, 6), qkv(1, 4, 8, seed=1)
    mask = torch.tensor([[True, False, True, True]])
    without = token_relation_loss(*[x[:, mask[0]] for x in (*student, *teacher)], 2)
    torch.testing.assert_close(token_relation_loss(*student, *teacher, 2, mask=mask), without)


@pytest.mark.parametrize("heads", [0, 3, 4, -2, 2.0])
def test_heads_that_do_not_divide_both_widths_are_refused(heads):
    with pytest.raises(InputError, match=r"divisor of 6 \(student\) and of 8 \(teacher\)"):
        token_relation_loss(*qkv(2, 4, 6), *qkv(2, 4, 8), heads)


@pytest.mark.parametrize("place", [-1, 4])
def test_ids_outside_the_grid_are_refused(place):
    with pytest.raises(InputError, match=rf"0 to 3; got {place}"):
        token_relation_loss(*qkv(1, 2, 6), *qkv(1, 4, 6), 2, torch.tensor([[0, place]]))


def test_tokens_that_do_not_fit_are_refused():
    student, teacher = qkv(2, 3, 6), qkv(2, 4, 6)
    with pytest.raises(ShapeError, match=r"3 tokens and the teacher 4.*keep_ids"):
        token_relation_loss(*student, *teacher, 2)
    with pytest.raises(ShapeError, match=r"\[2, 3\]; got \[2, 2\]"):
        token_relation_loss(*student, *teacher, 2, torch.tensor([[0, 1], [0, 1]]))
    with pytest.raises(InputError, match="integers"):
        token_relation_loss(*student, *teacher, 2, torch.zeros(2, 3))
    with pytest.raises(ShapeError, match="of the student do not fit"):
        token_relation_loss(student[0], student[1][:, :2], student[2], *teacher, 2)
    with pytest.raises(ShapeError, match="different batches"):
        token_relation_loss(*student, *qkv(1, 3, 6), 2)
