"""``potstill distill`` by two processes, as torchrun and ``accelerate launch`` start them."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "scaling.md").read_text(encoding="utf-8")
PROGRAMS = {"torchrun": "torch.distributed.run", "accelerate": "accelerate.commands.accelerate_cli"}
DDP, BY_ACCELERATE, SHARDED = (
    next(line for line in PAGE.splitlines() if line.startswith(start) and end in line)
    for start, end in (("torchrun", "--out runs/two"), ("accelerate launch", "--out"), ("torchrun", "train.shard=true"))
)
STEPS = 24  # enough for a signal to come in the middle
SIZES = (f"train.steps={STEPS}", "train.batch_size=4", "train.checkpoint_every=100", "train.log_every=1")
SGD = ("train.optimizer=sgd", "train.learning_rate=0.05", "evaluate.samples=8")  # Adam makes steps of rounding errors
OPTIMA = ("policy.round_steps=4", "policy.probe_batches=1", "policy.warmup_rounds=1", "evaluate.shown=1")
pytestmark = pytest.mark.slow


def start(command, out=None, *more):
    """Start a command line as the page has it, only with other programs' paths and another folder."""
    program, *words = shlex.split(command)
    if out is not None:
        words[words.index("--out") + 1] = str(out)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-m", PROGRAMS[program], *words, *more],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def tiny(tiny_run):
    """Words that make the packaged recipe tiny."""
    return [word for override in tiny_run(*SIZES, *SGD, *OPTIMA) for word in ("--set", override)]


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


def test_two_processes_make_one_run_and_a_stopped_one_is_resumed_by_the_other_launcher(tiny, tmp_path):
    """Straight under DDP; and sharded, stopped by SIGTERM to torchrun, resumed by accelerate: the same student."""
    straight = start(DDP, tmp_path / "straight", *tiny)
    out, err = straight.communicate(timeout=400)
    assert straight.returncode == 0, err[-3000:]
    assert out.count("Student:") == 1
    assert out.count("Plan:") == 1

    folder = tmp_path / "stopped"
    stopped = start(SHARDED, folder, *tiny)
    wait_for_steps(stopped, folder, 2)
    stopped.send_signal(signal.SIGTERM)
    _, err = stopped.communicate(timeout=400)
    assert stopped.returncode != 0
    assert err.count("a checkpoint was written") == 1, err[-3000:]
    (checkpoint,) = (folder / "checkpoints").iterdir()
    assert not (folder / "student").exists()

    resumed = start(BY_ACCELERATE, folder, *tiny, "--set", "train.shard=true", "--resume")
    out, err = resumed.communicate(timeout=400)
    assert resumed.returncode == 0, err[-3000:]
    assert f"going on from {checkpoint.name}" in out
    for path in (tmp_path / "straight", folder):
        assert [e["step"] for e in events(path)] == list(range(1, STEPS + 1))
        assert [e["round"] for e in events(path, "round")] == list(range(1, STEPS // 4 + 1))
        assert not (path / ".lock").exists()
        assert json.loads((path / "environment.json").read_text())["world_size"] == 2
        assert (path / "report.html").is_file()
    ours, theirs = (load_file(p / "student" / "model.safetensors") for p in (tmp_path / "straight", folder))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-2, atol=1e-3)


def test_a_mistake_is_told_once_and_ends_all_processes(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "other").write_text("in the way")  # which only the first process looks at
    for out, more, message in (("new", ["--set", "train.stepz=3"], "no such field"), ("run", [], "is not empty")):
        process = start(DDP, tmp_path / out, *tiny, *more)
        _, err = process.communicate(timeout=200)
        assert process.returncode == 1  # torchrun's own, whatever the processes returned
        assert err.count("potstill: ") == 1, err
        assert message in err
        assert "exitcode  : 2" in err
    assert not (tmp_path / "new").exists()


def test_a_fault_on_one_process_ends_the_other(tmp_path):
    process = start(f"torchrun --standalone --nproc_per_node=2 {HERE / 'crash_worker.py'} {tmp_path / 'run'}")
    _, err = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "a fault on one rank" in err
