"""Starts a script of this folder by torchrun, as two processes."""

import os
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent


def launch(script, folder, *arguments):
    """Run ``script folder arguments...`` on two ranks; return what each left in ``folder / "rank<r>.pt"``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*sys.path, str(HERE)])}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command += [str(HERE / script), str(folder), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in range(2)]
