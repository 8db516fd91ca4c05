"""Two gloo processes end equal to each other and to one process with the same global batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def launch(folder, ranks, batch):
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*sys.path, str(HERE)])}
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--master_port=0"]
    command += ["--standalone", str(HERE / "rank_worker.py"), str(folder), str(batch)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in range(ranks)]


@pytest.mark.slow
def test_two_ranks_equal_one_process_with_the_same_global_batch(tmp_path):
    first, second = launch(tmp_path / "two", 2, 4)
    (alone,) = launch(tmp_path / "one", 1, 8)
    assert first["wrapped"] == "DistributedDataParallel"
    assert first["rounds"] == second["rounds"]
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
        torch.testing.assert_close(value, alone["weights"][name], rtol=1e-4, atol=1e-6)
    for (round_a, arm_a, reward_a), (round_b, arm_b, reward_b) in zip(first["rounds"], alone["rounds"]):
        assert (round_a, arm_a) == (round_b, arm_b)
        assert reward_a == pytest.approx(reward_b, rel=1e-3, abs=1e-6)
    assert len(list((tmp_path / "two" / "run").glob("checkpoint-9/policy.json"))) == 1
