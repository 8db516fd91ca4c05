"""Data workers live on through a signal to all processes, and end when their parent says so."""

import os
import signal
import subprocess
from functools import partial

import pytest
from torch.utils.data import DataLoader

from potstill.train.workers import start_worker

started = []


@pytest.fixture
def worker():
    """A loader's iterator with one worker, and that worker's process."""
    batches = iter(DataLoader(range(100), 2, num_workers=1, worker_init_fn=partial(start_worker, None)))
    next(batches)  # it is up
    return batches, batches._workers[0]


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_a_signal_from_elsewhere_stops_no_worker(worker, name):
    batches, process = worker
    subprocess.run(["kill", f"-{name}", str(process.pid)], check=True)
    assert sum(len(batch) for batch in batches) == 98  # torch raises here if a worker died


def test_a_worker_ends_at_once_when_its_parent_terminates_it(worker):
    _, process = worker
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler reports the end of any worker
    try:
        os.kill(process.pid, signal.SIGTERM)
        process.join(20)
        assert process.exitcode == 0
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_what_else_a_worker_does_at_its_start_is_done():
    loader = DataLoader(range(2), num_workers=1, worker_init_fn=partial(start_worker, _mark), collate_fn=_marks)
    assert list(loader) == [[0], [0]]


def _mark(number):
    started.append(number)


def _marks(rows):
    return list(started)
