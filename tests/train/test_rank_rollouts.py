"""Two ranks write different texts and train one student on them; stopped between, they go on exactly."""

import pytest
import torch
from launching import launch


@pytest.mark.slow
def test_two_ranks_write_apart_learn_together_and_go_on_exactly(tmp_path):
    whole = launch("rank_rollouts.py", tmp_path, tmp_path / "whole")
    launch("rank_rollouts.py", tmp_path, tmp_path / "parts", 2)
    again = launch("rank_rollouts.py", tmp_path, tmp_path / "parts", 0, 1)
    texts = [rank.pop("texts").tolist() for rank in whole]
    assert texts[0] != texts[1]
    for rank, kept in zip(again, texts):
        assert rank.pop("texts").tolist() == kept
    for name, value in whole[0].items():
        assert torch.equal(value, whole[1][name]), name
        assert torch.equal(value, again[0][name]), name
        assert torch.equal(value, again[1][name]), name
