"""Signals to a real ``potstill distill``, sent as a terminal or a cluster does: to its data workers too."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"

pytestmark = pytest.mark.slow


def _listen():
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background, as a test run may be, ignores it


class Process:
    """``potstill`` in a process group of its own."""

    def __init__(self, *arguments, log):
        paths = os.pathsep.join(filter(None, [str(SRC), os.environ.get("PYTHONPATH")]))
        self.log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "potstill", *map(str, arguments)],
                stdout=file, stderr=file, start_new_session=True, preexec_fn=_listen,
                env={**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
            )  # fmt: skip

    def once(self, happened, number):
        """Send a signal to the group as soon as something is true."""
        late = time.monotonic() + 300
        while not happened():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < late
            time.sleep(0.001)
        os.killpg(self._process.pid, number)

    def ended(self):
        """Wait for its end; return the exit code and what it printed."""
        try:
            return self._process.wait(300), " ".join(self.log.read_text().split())
        finally:
            self.end()

    def end(self):
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@pytest.fixture
def start(tmp_path, sets):
    """``start()`` begins the run in ``tmp_path / "run"``, ``start("--resume")`` goes on with it."""
    begun = []

    def run(*more):
        small = sets("train.steps=40", "train.checkpoint_every=1000", "train.workers=2", "train.log_every=1")
        command = ("distill", "kd-scenes", "--out", tmp_path / "run", *small)
        begun.append(Process(*command, *more, log=tmp_path / f"log{len(begun)}"))
        return begun[-1]

    yield run
    for process in begun:
        process.end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_training_checkpoints_and_exits_with_130(start, tmp_path, number):
    run = tmp_path / "run"
    process = start()
    process.once((run / "history.jsonl").exists, number)
    code, text = process.ended()
    assert code == 130, text
    assert "a checkpoint was written" in text
    assert "Traceback" not in text
    (checkpoint,) = (run / "checkpoints").iterdir()
    again = start("--resume")
    again.once((run / "progress.json").exists, number)  # while it measures
    code, text = again.ended()
    assert f"going on from {checkpoint.name}" in text
    assert code == 130, text
    assert "Go on with --resume" in text
    last = start("--resume")
    code, text = last.ended()
    assert code == 0
    assert "training was finished before" in text
    steps = [line for line in (run / "history.jsonl").read_text().splitlines() if '"step"' in line]
    assert len(steps) == 40


def test_a_signal_while_starting_up_exits_with_130_and_leaves_nothing(start, tmp_path):
    process = start()
    lock = tmp_path / "run" / ".lock"
    process.once(lambda: lock.exists() and time.time() > lock.stat().st_mtime + 0.05, signal.SIGTERM)
    code, text = process.ended()
    assert code == 130, text
    assert "potstill: interrupted" in text
    assert not (tmp_path / "run").exists()


def test_a_second_process_in_the_same_folder_is_refused_and_the_first_goes_on(start, tmp_path):
    first = start()
    first.once((tmp_path / "run" / "plan.json").exists, signal.SIGSTOP)  # or it might end before the others look
    for more in ((), ("--resume",)):
        code, text = start(*more).ended()
        assert code == 2
        assert "another process is running in this folder" in text
    first.once(lambda: True, signal.SIGCONT)
    assert first.ended()[0] == 0
