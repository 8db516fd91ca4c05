"""Two ranks draw one mixture of domains and learn what one process with batches twice as large learns."""

import json

import pytest
import torch
from launching import launch
from rank_domains import trained


@pytest.mark.slow
def test_two_ranks_learn_what_one_process_does(tmp_path):
    one = trained(tmp_path / "one", 4)
    two = launch("rank_domains.py", tmp_path)
    told = [json.loads(rank.pop("told")) for rank in two]
    expected = [e for e in one.history.events if e["event"] == "selection"]
    assert len(told[0]) == len(expected) == 3
    for ours, theirs in zip(told[0], expected):
        assert ours.pop("event") == theirs["event"]
        assert ours == pytest.approx({k: v for k, v in theirs.items() if k != "event"}, rel=1e-4)
    for name, value in one.model.named_parameters():
        assert torch.equal(two[0][name], two[1][name]), name
        torch.testing.assert_close(two[0][name], value.detach(), rtol=1e-4, atol=1e-5)
