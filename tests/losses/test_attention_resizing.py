import pytest
import torch

from potstill.errors import InputError, ShapeError
from potstill.losses import amad_loss, resize_attention


def maps(*shape, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*shape, generator=draws, dtype=torch.float64)).softmax(-1)


def matrix(grid, to, extra):
    """Weights (K', K) of bilinear interpolation between centres of cells, extra tokens copied, by hand."""

    def axis(n, m):
        out = torch.zeros(m, n, dtype=torch.float64)
        for i in range(m):
            x = min(max((i + 0.5) * n / m - 0.5, 0), n - 1)
            low = min(int(x), n - 1)
            out[i, low] += 1 - (x - low)
            out[i, min(low + 1, n - 1)] += x - low
        return out

    return torch.block_diag(
        torch.eye(extra, dtype=torch.float64), torch.kron(axis(grid[0], to[0]), axis(grid[1], to[1]))
    )


@pytest.mark.parametrize("extra", [0, 1, 3])
@pytest.mark.parametrize(("grid", "to"), [((4, 4), (2, 2)), ((2, 3), (4, 5)), ((3, 3), (1, 2)), ((2, 4), (4, 2))])
def test_self_attention_is_interpolated_over_keys_then_queries(grid, to, extra):
    n, m = grid[0] * grid[1] + extra, to[0] * to[1] + extra
    attn = maps(2, 3, n, n)
    M = matrix(grid, to, extra)
    exact = M @ (attn @ M.T)
    found = resize_attention(attn, (m, m), grid=grid, to=to)
    torch.testing.assert_close(found, exact / exact.sum(-1, keepdim=True))


@pytest.mark.parametrize("Q", [1, 5, 17])
def test_queries_that_are_no_patches_stay_as_they_are(Q):
    attn = maps(2, 3, Q, 17)
    M = matrix((4, 4), (2, 3), 1)
    size = (Q, 7)
    exact = attn @ M.T
    found = resize_attention(attn, size, grid=(4, 4), to=(2, 3))
    torch.testing.assert_close(found, exact / exact.sum(-1, keepdim=True))


def test_rows_sum_to_one_an_even_map_stays_even_and_the_same_grid_changes_nothing():
    attn = maps(2, 3, 10, 10)
    found = resize_attention(attn, (26, 26), grid=(3, 3), to=(5, 5))
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 3, 26, dtype=torch.float64))
    even = torch.full((1, 1, 10, 10), 0.1)
    torch.testing.assert_close(
        resize_attention(even, (26, 26), grid=(3, 3), to=(5, 5)), torch.full((1, 1, 26, 26), 1 / 26)
    )
    torch.testing.assert_close(resize_attention(attn, (10, 10), grid=(3, 3), to=(3, 3)), attn)


def test_a_row_of_zeros_stays_one_and_half_precision_becomes_float32():
    attn = maps(1, 1, 5, 5).bfloat16()
    attn[0, 0, 2] = 0
    found = resize_attention(attn, (5, 2), grid=(2, 2), to=(1, 1))
    assert found.dtype == torch.float32
    assert (found[0, 0, 2] == 0).all()
    assert torch.isfinite(found).all()


def test_resized_maps_go_into_the_loss_and_a_gradient_comes_back():
    student, teacher = maps(2, 2, 5, 5).requires_grad_(), maps(2, 3, 17, 17)
    amad_loss(student, resize_attention(teacher, (5, 5), grid=(4, 4), to=(2, 2))).backward()
    assert student.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda x: resize_attention(x, (17, 17), grid=(2, 2), to=(4, 4)), (student,))


@pytest.mark.parametrize(
    ("shape", "size", "grid", "to", "words"),
    [
        ((1, 1, 5, 9), (5, 5), (4, 4), (2, 2), "the keys do not fit the grids; expected 16 before and 4 after"),
        ((1, 1, 5, 17), (5, 4), (4, 4), (2, 2), "the keys do not fit.*got 17 before, 4 after"),
        ((1, 1, 6, 17), (5, 5), (4, 4), (2, 2), "the queries do not fit.*got 6 before, 5 after"),
        ((1, 17, 17), (5, 5), (4, 4), (2, 2), r"four axes; expected \(B, H, Q, K\)"),
        ((1, 1, 17, 17), (5, 5), (4, 0), (2, 2), "grid has no cells"),
        ((1, 1, 17, 17), (5, 5), (4, 4), (2, 2, 1), "to has no cells"),
    ],
)
def test_grids_that_do_not_fit_are_refused(shape, size, grid, to, words):
    with pytest.raises(ShapeError, match=words):
        resize_attention(maps(*shape), size, grid=grid, to=to)


def test_integers_are_no_map():
    with pytest.raises(InputError, match="not floating point"):
        resize_attention(torch.ones(1, 1, 4, 4, dtype=torch.long), (1, 1), grid=(2, 2), to=(1, 1))
