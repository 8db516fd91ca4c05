"""Two ranks weigh their terms as one process does that has all the rows."""

import pytest
import rank_grad_mag
import torch
from launching import launch


@pytest.mark.slow
def test_two_ranks_are_one_larger_batch(tmp_path):
    alone = rank_grad_mag.trained(tmp_path / "alone", 8)
    for rank in launch("rank_grad_mag.py", tmp_path):
        for name, value in alone.items():
            torch.testing.assert_close(rank[name], value, rtol=1e-4, atol=1e-6)
