"""A cached teacher under two ranks: each reads the rows of its own samples."""

import pytest
import rank_cache
import torch
from launching import launch

from potstill.run import CacheForm, build_cache


@pytest.mark.slow
def test_two_ranks_from_a_cache_end_as_one_process_that_accumulates(tmp_path):
    cache = build_cache("kd-emoji", tmp_path / "cache", overrides=rank_cache.DATA, form=CacheForm(k=32))
    (tmp_path / "two").mkdir()
    first, second = launch("rank_cache.py", tmp_path / "two", cache)
    alone = rank_cache.trained(tmp_path / "one", cache, "train.accumulation=2")
    for key, value in first.items():
        assert second[key].equal(value), key
        torch.testing.assert_close(value, alone[key], rtol=1e-3, atol=1e-4)
