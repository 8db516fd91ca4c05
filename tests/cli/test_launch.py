"""``potstill distill`` by two processes, as torchrun and ``accelerate launch`` start them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node=2")
ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--num_processes=2")
SIZES = ("train.steps=6", "train.batch_size=4", "train.checkpoint_every=100", "train.log_every=1", "evaluate.samples=8")
OPTIMA = ("policy.round_steps=2", "policy.probe_batches=1", "policy.warmup_rounds=1", "evaluate.shown=1")
pytestmark = pytest.mark.slow


@pytest.fixture
def launch(tiny_run):
    """Start ``potstill distill optima-scenes`` on a tiny CoCa; returns the process."""

    def start(launcher, out, *more, module=("-m", "potstill"), recipe="optima-scenes", sets=()):
        overrides = [word for o in tiny_run(*SIZES, *OPTIMA, *sets) for word in ("--set", o)]
        words = [*module, "distill", recipe, "--out", str(out), *overrides, *more] if module[0] == "-m" else module
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.Popen(
            [sys.executable, "-m", *launcher, *words],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


def events(out, kind="step"):
    path = out / "history.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [e for e in map(json.loads, lines) if e["event"] == kind]


def wait_for_steps(process, out, steps):
    until = time.monotonic() + 300
    while len(events(out)) < steps:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < until
        time.sleep(0.05)  # of another process nothing else can be waited for


def test_two_processes_make_one_run_and_a_stopped_one_is_resumed_by_the_other_launcher(launch, tmp_path):
    """Straight under DDP; and sharded, stopped by SIGTERM to torchrun, resumed by accelerate: the same student."""
    straight = launch(TORCHRUN, tmp_path / "straight")
    out, err = straight.communicate(timeout=400)
    assert straight.returncode == 0, err[-3000:]
    assert out.count("Student:") == 1
    assert out.count("Plan:") == 1

    folder, more = tmp_path / "stopped", ("train.shard=true", "train.steps=6")
    stopped = launch(TORCHRUN, folder, sets=more)
    wait_for_steps(stopped, folder, 2)
    stopped.send_signal(signal.SIGTERM)
    _, err = stopped.communicate(timeout=400)
    assert stopped.returncode != 0
    assert err.count("a checkpoint was written") == 1
    (checkpoint,) = (folder / "checkpoints").iterdir()
    assert not (folder / "student").exists()

    resumed = launch(ACCELERATE, folder, "--resume", sets=more)
    out, err = resumed.communicate(timeout=400)
    assert resumed.returncode == 0, err[-3000:]
    assert f"going on from {checkpoint.name}" in out
    for path in (tmp_path / "straight", folder):
        assert [e["step"] for e in events(path)] == [1, 2, 3, 4, 5, 6]
        assert [e["round"] for e in events(path, "round")] == [1, 2, 3]
        assert not (path / ".lock").exists()
        assert json.loads((path / "environment.json").read_text())["world_size"] == 2
        assert (path / "report.html").is_file()
    ours, theirs = (load_file(p / "student" / "model.safetensors") for p in (tmp_path / "straight", folder))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


def test_a_mistake_is_told_once_and_ends_all_processes(launch, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "other").write_text("in the way")  # which only the first process looks at
    for out, message in ((tmp_path / "new", "there is no such field"), (tmp_path / "run", "folder is not empty")):
        sets = ("train.stepz=3",) if out.name == "new" else ()
        process = launch(TORCHRUN, out, sets=sets)
        _, err = process.communicate(timeout=200)
        assert process.returncode == 1  # torchrun's own, whatever the processes returned
        assert err.count("potstill: ") == 1, err
        assert message in err
        assert "exitcode  : 2" in err
    assert not (tmp_path / "new").exists()


def test_a_fault_on_one_process_ends_the_other(launch, tmp_path):
    process = launch(TORCHRUN, tmp_path, module=[str(HERE / "crash_worker.py"), str(tmp_path / "run")])
    _, err = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "a fault on one rank" in err
