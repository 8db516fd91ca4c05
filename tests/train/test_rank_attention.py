"""Attention maps are matched on two ranks as in one process."""

import pytest
import rank_attention
import torch
from launching import launch


@pytest.mark.slow
def test_two_ranks_match_attention_as_one_process_does_under_ddp_and_sharded(tmp_path):
    alone = rank_attention.trained(lambda module: module)
    untrained = rank_attention.Net(2, 1).state_dict()
    assert any(not alone[name].equal(untrained[name]) for name in alone if "layer.1.attention.self.query" in name)
    for rank in launch("rank_attention.py", tmp_path):
        for way in ("ddp", "sharded"):
            for name, value in alone.items():
                torch.testing.assert_close(
                    rank[way][name], value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n} {m}"
                )
