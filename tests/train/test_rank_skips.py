"""Of two gloo processes one meets a NaN: both leave the step out."""

import json

import pytest
import torch
from launching import launch


@pytest.mark.slow
def test_ranks_skip_a_step_together_and_the_first_says_which_term_broke_on_the_other(tmp_path):
    first, second = launch("rank_worker.py", tmp_path, 30)  # of step 3; the second rank's row
    assert all(value.isfinite().all() for value in first["weights"].values())
    assert first["rounds"] == second["rounds"]
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
    events = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    (skip,) = [event for event in events if event["event"] == "skip"]
    assert (skip["step"], skip["term"]) == (3, "answer")
    assert 30 in skip["samples"]
    assert (tmp_path / skip["file"]).name == "step-3-rank1.safetensors"
    assert (tmp_path / skip["file"]).is_file()
