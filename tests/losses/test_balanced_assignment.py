import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.errors import InputError, ShapeError
from potstill.losses import sinkhorn_knopp

F64 = torch.float64


def logits_of(N, U, seed=0, size=0.3):
    return size * (2 * torch.rand(N, U, generator=torch.Generator().manual_seed(seed), dtype=F64) - 1)


def plain(logits, iters=3, eps=0.05):
    """The iteration as the card has it: clusters in rows, total mass 1."""
    Q = (logits.T / eps).exp()
    U, N = Q.shape
    Q = Q / Q.sum()
    for _ in range(iters):
        Q = Q / Q.sum(1, keepdim=True) / U
        Q = Q / Q.sum(0, keepdim=True) / N
    return (Q * N).T


@pytest.mark.parametrize("shape", [(8, 3), (50, 5), (1, 1), (6, 6)])
@pytest.mark.parametrize(("iters", "eps"), [(3, 0.05), (1, 0.5), (10, 0.1)])
def test_it_equals_the_plain_iteration(shape, iters, eps):
    logits = logits_of(*shape)
    found = sinkhorn_knopp(logits, num_iters=iters, epsilon=eps)
    torch.testing.assert_close(found, plain(logits, iters, eps))
    half = sinkhorn_knopp(logits.float(), num_iters=iters, epsilon=eps)
    torch.testing.assert_close(half, found.float(), rtol=1e-4, atol=1e-5)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_rows_sum_to_one_and_clusters_are_almost_balanced(seed):
    # Of 200 rows the clusters may still be 9 % apart after three iterations: less averages out.
    found = sinkhorn_knopp(logits_of(2000, 5, seed))
    torch.testing.assert_close(found.sum(1), torch.ones(2000, dtype=F64), atol=1e-12, rtol=0)
    torch.testing.assert_close(found.sum(0), torch.full((5,), 400.0, dtype=F64), rtol=0.05, atol=0)


def test_constant_logits_give_every_cluster_alike():
    torch.testing.assert_close(sinkhorn_knopp(torch.full((9, 4), 0.7, dtype=F64)), torch.full((9, 4), 0.25, dtype=F64))


def test_permuting_rows_or_clusters_permutes_the_assignment():
    logits = logits_of(10, 4)
    found = sinkhorn_knopp(logits)
    rows, clusters = torch.randperm(10, generator=torch.Generator().manual_seed(1)), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(sinkhorn_knopp(logits[rows]), found[rows])
    torch.testing.assert_close(sinkhorn_knopp(logits[:, clusters]), found[:, clusters])


def test_a_constant_on_all_logits_changes_nothing():
    logits = logits_of(10, 4)
    torch.testing.assert_close(sinkhorn_knopp(logits + 30), sinkhorn_knopp(logits))


def test_large_logits_and_a_tiny_epsilon_stay_finite():
    for logits in (logits_of(10, 4, size=1e4).float(), logits_of(10, 4, size=1.0).to(torch.bfloat16)):
        found = sinkhorn_knopp(logits, epsilon=1e-4)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.sum(1), torch.ones(10), atol=1e-4, rtol=0)


def test_a_cluster_that_takes_every_row_is_shared_out():
    logits = logits_of(40, 4, size=0.1)
    logits[:, 0] += 0.5
    assert (logits.argmax(1) == 0).all()
    assert sinkhorn_knopp(logits, num_iters=50).sum(0).max() < 10.5


def test_there_is_no_graph_and_no_row_is_no_error():
    assert not sinkhorn_knopp(logits_of(4, 2).requires_grad_()).requires_grad
    assert sinkhorn_knopp(torch.zeros(0, 3)).shape == (0, 3)


def test_fewer_rows_than_clusters_warn():
    with pytest.warns(UserWarning, match="3 rows cannot fill 4 clusters"):
        found = sinkhorn_knopp(logits_of(3, 4))
    torch.testing.assert_close(found.sum(1), torch.ones(3, dtype=F64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sinkhorn_knopp(logits_of(4, 4))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_not_finite_are_refused(bad):
    logits = logits_of(4, 2)
    logits[2, 1] = bad
    with pytest.raises(InputError, match="NaN or Inf"):
        sinkhorn_knopp(logits)


def test_wrong_arguments_are_refused():
    for shape in ((4,), (2, 3, 4), (4, 0)):
        with pytest.raises(ShapeError, match="U >= 1"):
            sinkhorn_knopp(torch.zeros(shape))
    with pytest.raises(InputError, match="epsilon"):
        sinkhorn_knopp(torch.zeros(4, 2), epsilon=0)
    for iters in (0, 1.5, True):
        with pytest.raises(InputError, match="num_iters"):
            sinkhorn_knopp(torch.zeros(4, 2), num_iters=iters)
    with pytest.raises(InputError, match="floating point"):
        sinkhorn_knopp(torch.zeros(4, 2, dtype=torch.long))
