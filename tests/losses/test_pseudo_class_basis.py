import pytest
import torch

from potstill.errors import InputError, IntegrityError, ShapeError
from potstill.losses import LELPBasis, LELPStatistics, fit_lelp, lelp_targets


def data(N=60, D=7, C=3, seed=0, dtype=torch.float64):
    """Embeddings whose classes lie apart and spread unevenly, their classes, and a head."""
    draws = torch.Generator().manual_seed(seed)
    ids = torch.arange(N) % C
    spread = torch.linspace(0.3, 2.5, D, dtype=dtype)
    x = (
        torch.randn(N, D, generator=draws, dtype=dtype) * spread
        + 3 * torch.randn(C, D, generator=draws, dtype=dtype)[ids]
    )
    return x, ids, torch.randn(C, D, generator=draws, dtype=dtype)


def targets(x, basis, beta=1.0):
    probs = torch.linspace(1, 2, len(x) * len(basis.mean), dtype=x.dtype).reshape(len(x), -1)
    return lelp_targets(
        x,
        probs / probs.sum(1, keepdim=True),
        basis.mean,
        basis.directions,
        basis.scale,
        basis.null_projector,
        beta,
    )


@pytest.mark.parametrize("rotate", [True, False])
@pytest.mark.parametrize("with_head", [True, False])
def test_directions_are_orthonormal_and_stay_in_what_the_head_does_not_see(rotate, with_head):
    x, ids, head = data()
    basis = fit_lelp(x, ids, 3, 3, head_weight=head if with_head else None, rotate=rotate)
    eye = torch.eye(3, dtype=x.dtype).expand(3, 3, 3)
    torch.testing.assert_close(basis.directions.mT @ basis.directions, eye)
    assert (basis.null_projector is None) != with_head
    if with_head:
        torch.testing.assert_close(basis.null_projector @ basis.directions, basis.directions)
        torch.testing.assert_close(head @ basis.null_projector, torch.zeros_like(head))


def test_directions_span_the_leading_eigenvectors_of_the_class_covariance():
    x, ids, head = data()
    basis = fit_lelp(x, ids, 3, 2, head_weight=head)
    projected = x @ basis.null_projector
    for c in range(3):
        vectors = torch.linalg.eigh(torch.cov(projected[ids == c].T))[1][:, -2:]
        u = basis.directions[c]
        torch.testing.assert_close(u @ u.T, vectors @ vectors.T)
        torch.testing.assert_close(basis.mean[c], projected[ids == c].mean(0))
        torch.testing.assert_close(basis.scale[c], ((projected[ids == c] - basis.mean[c]) @ u).square().mean().sqrt())


def test_without_rotation_the_largest_entry_of_a_direction_is_positive():
    x, ids, _ = data()
    directions = fit_lelp(x, ids, 3, 4, rotate=False).directions
    assert (directions.gather(1, directions.abs().argmax(1, keepdim=True)) > 0).all()


def test_rotation_keeps_the_span_and_the_scale_and_follows_its_seed():
    x, ids, head = data()
    plain = fit_lelp(x, ids, 3, 3, head_weight=head, rotate=False)
    turned, again, other = (fit_lelp(x, ids, 3, 3, head_weight=head, seed=seed) for seed in (5, 5, 6))
    span = plain.directions @ plain.directions.mT
    torch.testing.assert_close(turned.directions @ turned.directions.mT, span)
    torch.testing.assert_close(turned.scale, plain.scale)
    assert torch.equal(turned.directions, again.directions)
    assert (turned.directions - other.directions).abs().max() > 0.1
    assert (turned.directions - plain.directions).abs().max() > 0.1


def test_rotations_are_even_over_all_orthogonal_matrices():
    x, ids, _ = data(N=10, D=3, C=1)
    plain = fit_lelp(x, ids, 1, 2, rotate=False).directions[0]
    turns = torch.stack([plain.T @ fit_lelp(x, ids, 1, 2, seed=seed).directions[0] for seed in range(300)])
    # Of an even draw every entry has mean 0 and mean square 1/2; reflections are half of all.
    assert turns.mean(0).abs().max() < 0.15
    torch.testing.assert_close(turns.square().mean(0), torch.full((2, 2), 0.5, dtype=x.dtype), atol=0.08, rtol=0)
    assert 0.35 < (torch.linalg.det(turns) > 0).double().mean() < 0.65


def test_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    fit_lelp(*data()[:2], 3, 2)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_rows_of_the_head_added_to_an_embedding_do_not_move_it():
    x, ids, head = data()
    basis = fit_lelp(x, ids, 3, 3, head_weight=head)
    moved = x + torch.randn(len(x), 3, dtype=x.dtype, generator=torch.Generator().manual_seed(1)) @ head
    torch.testing.assert_close(targets(moved, basis), targets(x, basis))
    without = fit_lelp(x, ids, 3, 3)
    assert (targets(moved, without) - targets(x, without)).abs().max() > 0.01


def test_a_head_with_dependent_rows_takes_out_only_its_rank():
    x, ids, head = data()
    head[2] = 2 * head[0] - head[1]
    basis = fit_lelp(x, ids, 3, 5, head_weight=head)  # D - rank = 7 - 2
    assert round(basis.null_projector.trace().item(), 6) == 5
    with pytest.raises(InputError, match="at most 5"):
        fit_lelp(x, ids, 3, 6, head_weight=head)


@pytest.mark.parametrize("change", [lambda x: x + 100.0, lambda x: 30 * x, lambda x: 0.01 * x])
def test_a_shift_or_a_scale_of_all_embeddings_leaves_the_targets(change):
    x, ids, head = data()
    plain = targets(x, fit_lelp(x, ids, 3, 3, head_weight=head))
    torch.testing.assert_close(targets(change(x), fit_lelp(change(x), ids, 3, 3, head_weight=head)), plain)


@pytest.mark.parametrize("batches", [[60], [7, 1, 30, 22]])
def test_statistics_gathered_batch_by_batch_give_the_same_basis(batches):
    x, ids, head = data()
    x = x + 50  # far from 0, where plain sums of squares lose digits
    statistics = LELPStatistics(3, 7)
    for rows, classes in zip(x.split(batches), ids.split(batches)):
        statistics.update(rows, classes)
    for given in ({}, {"head_weight": head}, {"rotate": False, "head_weight": head}, {"seed": 3}):
        direct, streamed = fit_lelp(x, ids, 3, 3, **given), statistics.fit(3, dtype=torch.float64, **given)
        for name, value in vars(direct).items():
            torch.testing.assert_close(getattr(streamed, name), value, rtol=1e-6, atol=1e-6)


def test_statistics_of_two_halves_merge():
    x, ids, _ = data()
    whole, first, second = (LELPStatistics(3, 7) for _ in range(3))
    whole.update(x, ids)
    first.update(x[:20], ids[:20])
    second.update(x[20:], ids[20:])
    first.merge(second)
    for name in ("count", "mean", "scatter"):
        torch.testing.assert_close(getattr(first, name), getattr(whole, name))


def test_a_class_flat_in_some_direction_still_gets_directions_off_the_head():
    x, ids, head = data(C=2)
    x[:, 2:] = 0  # two dimensions, of which the head's rows cut some away
    basis = fit_lelp(x, ids, 2, 4, head_weight=head)
    torch.testing.assert_close(basis.null_projector @ basis.directions, basis.directions)


def test_half_precision_is_fitted_in_full_and_given_back_as_float32():
    x, ids, head = data(dtype=torch.float32)
    basis = fit_lelp(x.bfloat16(), ids, 3, 2, head_weight=head.bfloat16())
    exact = fit_lelp(x.bfloat16().double(), ids, 3, 2, head_weight=head.bfloat16().double())
    assert basis.mean.dtype == basis.directions.dtype == torch.float32
    torch.testing.assert_close(basis.directions.double(), exact.directions, rtol=0, atol=1e-6)


@pytest.mark.parametrize("with_head", [True, False])
def test_a_basis_survives_its_file(tmp_path, with_head):
    x, ids, head = data()
    basis = fit_lelp(x, ids, 3, 2, head_weight=head if with_head else None)
    loaded = LELPBasis.load(basis.save(tmp_path / "basis.safetensors"))
    for name, value in vars(basis).items():
        assert (getattr(loaded, name) is None) == (value is None)
        assert value is None or torch.equal(getattr(loaded, name), value)


def test_a_file_that_is_no_basis_is_refused(tmp_path):
    path = tmp_path / "basis.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(IntegrityError, match="no basis of LELP"):
        LELPBasis.load(path)


def test_wrong_numbers_of_subclasses_are_refused():
    x, ids, head = data()
    with pytest.raises(InputError, match="at least 1; got 0"):
        fit_lelp(x, ids, 3, 0)
    with pytest.raises(InputError, match=r"at most 4.*rank of the head; got 5"):
        fit_lelp(x, ids, 3, 5, head_weight=head)
    few = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    with pytest.raises(InputError, match=r"class 2 has too few.*more than num_subclasses = 2; got 2"):
        fit_lelp(x[:8], few, 3, 2)


def test_embeddings_that_cannot_be_fitted_are_refused():
    x, ids, head = data()
    with pytest.raises(InputError, match="not finite"):
        fit_lelp(x.index_fill(0, torch.tensor([4]), torch.nan), ids, 3, 2)
    with pytest.raises(InputError, match="head is not finite"):
        fit_lelp(x, ids, 3, 2, head_weight=head * torch.inf)
    same = torch.where(ids[:, None] == 1, x[1], x)
    with pytest.raises(InputError, match="class 1 has no spread"):
        fit_lelp(same, ids, 3, 2)
    statistics = LELPStatistics(3, 7)
    statistics.update(same, ids)
    with pytest.raises(InputError, match="class 1 has no spread"):
        statistics.fit(2)


def test_shapes_and_classes_that_do_not_fit_are_refused():
    x, ids, head = data()
    with pytest.raises(ShapeError, match=r"\(N, D\) and \(N,\)"):
        fit_lelp(x, ids[:-1], 3, 2)
    with pytest.raises(ShapeError, match="head does not fit"):
        fit_lelp(x, ids, 3, 2, head_weight=head[:, :-1])
    with pytest.raises(InputError, match="0 to 1; got 2"):
        fit_lelp(x, ids, 2, 2)
    with pytest.raises(InputError, match="no integers"):
        fit_lelp(x, ids.float(), 3, 2)
    with pytest.raises(InputError, match="floating point"):
        fit_lelp(x.long(), ids, 3, 2)
    with pytest.raises(ShapeError, match="another width"):
        LELPStatistics(3, 6).update(x, ids)
    with pytest.raises(InputError, match="no such statistics"):
        LELPStatistics(0, 6)
