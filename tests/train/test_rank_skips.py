"""Of two gloo processes one meets a NaN: both leave the step out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def launch(folder, bad):
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*sys.path, str(HERE)])}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    command += ["--standalone", str(HERE / "rank_worker.py"), str(folder), str(bad)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in range(2)]


@pytest.mark.slow
def test_ranks_skip_a_step_together_and_the_first_says_which_term_broke_on_the_other(tmp_path):
    first, second = launch(tmp_path / "two", 30)  # of step 3; the second rank's row
    assert all(value.isfinite().all() for value in first["weights"].values())
    assert first["rounds"] == second["rounds"]
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
    events = [json.loads(line) for line in (tmp_path / "two" / "history.jsonl").read_text().splitlines()]
    (skip,) = [event for event in events if event["event"] == "skip"]
    assert (skip["step"], skip["term"]) == (3, "answer")
    assert 30 in skip["samples"]
    assert (tmp_path / "two" / skip["file"]).name == "step-3-rank1.safetensors"
    assert (tmp_path / "two" / skip["file"]).is_file()
