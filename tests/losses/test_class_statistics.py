"""Class means: in one piece, batch by batch, and over processes."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from potstill.errors import InputError, ShapeError
from potstill.losses import ClassMeanAccumulator, class_means


def draw(N=40, D=5, C=4, dtype=torch.float64):
    draws = torch.Generator().manual_seed(0)
    return torch.randn(N, D, generator=draws, dtype=torch.float64).to(dtype), torch.randint(C, (N,), generator=draws)


def test_means_are_those_of_the_rows_of_each_class():
    features, labels = draw()
    means, counts = class_means(features, labels, 6)
    for c in range(4):
        torch.testing.assert_close(means[c], features[labels == c].mean(0))
        assert counts[c] == (labels == c).sum()
    assert (means[4:] == 0).all()
    assert (counts[4:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_shuffled_batches_give_the_means_of_one_piece(dtype):
    features, labels = draw(dtype=dtype)
    means, counts = class_means(features, labels, 4)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    seen = ClassMeanAccumulator(4)
    for ids in order.split([7, 1, 20, 12]):
        seen.update(features[ids], labels[ids])
    torch.testing.assert_close(seen.finalize()[0], means, rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=0)
    assert torch.equal(seen.finalize()[1], counts)
    assert means.dtype == torch.promote_types(dtype, torch.float32)


def test_sums_are_kept_in_double_precision():
    # One after the other in float32, ones stop counting at 2^24.
    seen = ClassMeanAccumulator(1)
    seen.update(torch.full((1, 1), 2.0**24), torch.zeros(1, dtype=torch.long))
    for _ in range(4):
        seen.update(torch.ones(1, 1), torch.zeros(1, dtype=torch.long))
    assert seen.finalize()[0].item() == (2**24 + 4) / 5


def test_masked_rows_do_not_count():
    features, labels = draw()
    mask = torch.arange(40) % 3 != 0
    features[~mask], labels[~mask] = torch.nan, -100
    seen = ClassMeanAccumulator(4)
    seen.update(features, labels, mask)
    torch.testing.assert_close(seen.finalize()[0], class_means(features[mask], labels[mask], 4)[0])


def test_no_graph_is_kept():
    features, labels = draw()
    assert not class_means(features.requires_grad_(), labels, 4)[0].requires_grad


def _share(rank, file, results):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    features, labels = draw()
    seen = ClassMeanAccumulator(4)
    seen.update(features[rank::2], labels[rank::2])
    results[rank] = [x.tolist() for x in seen.finalize()]
    dist.destroy_process_group()


def test_two_processes_share_their_sums(tmp_path):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_share, (str(tmp_path / "rendezvous"), results), nprocs=2)
        found = dict(results)
    means, counts = class_means(*draw(), 4)
    for rank in (0, 1):
        torch.testing.assert_close(torch.tensor(found[rank][0], dtype=torch.float64), means)
        assert found[rank][1] == counts.tolist()


def test_wrong_input_is_refused():
    features, labels = draw()
    with pytest.raises(InputError, match="0 to 2; got 3"):
        class_means(features, labels, 3)
    with pytest.raises(ShapeError, match="labels do not fit"):
        class_means(features, labels[:5], 4)
    with pytest.raises(ShapeError, match=r"\(N, D\)"):
        class_means(features[None], labels[None], 4)
    with pytest.raises(InputError, match="not floating point"):
        class_means(labels[:, None], labels, 4)
    with pytest.raises(InputError, match="no number of classes"):
        ClassMeanAccumulator(0)
    seen = ClassMeanAccumulator(4)
    with pytest.raises(InputError, match="Call update first"):
        seen.finalize()
    seen.update(features, labels)
    with pytest.raises(ShapeError, match=r"\(N, 5\)"):
        seen.update(features[:, :3], labels)
