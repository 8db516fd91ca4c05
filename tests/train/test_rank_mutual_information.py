"""Two ranks compare their own rows: they end as one process that accumulates over the same micro-batches."""

import pytest
import rank_mutual_information
import torch
from launching import launch


@pytest.mark.slow
def test_two_ranks_are_two_micro_batches_and_not_one_larger_batch(tmp_path):
    with pytest.warns(UserWarning, match="accumulation makes the bound no better"):
        accumulated = rank_mutual_information.trained(lambda module: module, [slice(0, 4), slice(4, 8)])
    together = rank_mutual_information.trained(lambda module: module, [slice(0, 8)])
    for rank in launch("rank_mutual_information.py", tmp_path):
        for name, value in accumulated.items():
            torch.testing.assert_close(rank[name], value.detach(), rtol=1e-5, atol=1e-6)
        assert any((rank[name] - value).abs().max() > 1e-4 for name, value in together.items())
