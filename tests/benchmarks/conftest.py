"""The scripts of ``benchmarks/`` run as a user runs them, in tiny sizes: what no longer runs is found here."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(tmp_path):
    """``script("start_up", "--repetitions", 2)`` runs it in a process of its own and returns the rows it wrote."""

    def run(name, *options, out="rows.csv"):
        path = tmp_path / out
        command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", *options, "--out", path]
        paths = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            [str(c) for c in command], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
        )
        assert done.returncode == 0, done.stderr[-2000:]
        with path.open(encoding="utf-8") as file:
            return list(csv.DictReader(file))

    return run
