"""Runs cells of a comparison as processes of ``potstill distill``, several at a time, and goes on where one stopped."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import potstill

Tell = Callable[[Mapping[str, Any]], None]
_LOOK_EVERY = 0.05  # seconds
_IN_USE = "another process is running in this folder"


@dataclass(frozen=True)
class Job:
    """One run to be made.

    Attributes:
        name: What messages call it.
        recipe: File of its recipe.
        out: Its run folder.
        overrides: What ``--set`` says.
    """

    name: str
    recipe: Path
    out: Path
    overrides: tuple[str, ...] = field(default=())

    @property
    def is_done(self) -> bool:
        """Whether it was measured."""
        return (self.out / "metrics.json").is_file()

    @property
    def log(self) -> Path:
        """What the process said; beside the folder, which belongs to the run."""
        return self.out.with_name(f"{self.out.name}.log")

    def command(self) -> list[str]:
        """Return the command that begins it, or goes on with it."""
        words = [sys.executable, "-m", "potstill", "distill", str(self.recipe), "--out", str(self.out)]
        words += [word for override in self.overrides for word in ("--set", override)]
        return [*words, "--resume"] if (self.out / "recipe.yaml").is_file() else words


def run_jobs(jobs: Sequence[Job], parallel: int, tell: Tell = lambda event: None) -> dict[str, str]:
    """Run what is not done yet, at most ``parallel`` at a time.

    An interruption is passed on to the processes: they write a checkpoint, and the next call goes on from it.

    Args:
        jobs: In the order in which they are begun.
        parallel: Number of processes.
        tell: Called with {"event": "begun" | "done" | "failed", "job": name, ...}.

    Returns:
        Why a job failed, by its name; a failure stops no other job.
    """
    waiting = [job for job in jobs if not job.is_done]
    running: list[tuple[Job, subprocess.Popen]] = []
    failures: dict[str, str] = {}
    try:
        while waiting or running:
            while len(running) < parallel and (job := next((j for j in waiting if not _is_in_use(j.out)), None)):
                waiting.remove(job)
                if job.is_done:  # by a process of a comparison that was killed and left it alone
                    tell({"event": "done", "job": job.name})
                    continue
                running.append((job, _start(job)))
                tell({"event": "begun", "job": job.name, "pid": running[-1][1].pid})
            for job, process in [pair for pair in running if pair[1].poll() is not None]:
                running.remove((job, process))
                reason = None if process.returncode == 0 and job.is_done else _reason(job, process.returncode)
                if reason is None:
                    tell({"event": "done", "job": job.name})
                elif _IN_USE in reason:  # one left alone by a killed comparison was starting: wait for it
                    waiting.append(job)
                else:
                    failures[job.name] = reason
                    tell({"event": "failed", "job": job.name, "why": reason})
            time.sleep(_LOOK_EVERY)
    finally:
        _stop([process for _, process in running])
    return failures


def _start(job: Job) -> subprocess.Popen:
    job.out.parent.mkdir(parents=True, exist_ok=True)
    home = str(Path(potstill.__file__).parents[1])
    paths = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    env = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": paths, "COLUMNS": "200"}
    with job.log.open("wb") as log:
        # In a session of its own: Ctrl-C reaches it through us alone, and once; a second signal would lose its step.
        return subprocess.Popen(
            job.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True
        )


def _stop(processes: Sequence[subprocess.Popen]) -> None:
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait()


def _is_in_use(folder: Path) -> bool:
    """Whether a process is at work there: one of a comparison that was killed goes on by itself."""
    try:
        number = os.open(folder / ".lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(number)
    return False


def _reason(job: Job, code: int) -> str:
    """Return the message the process ended with, in one line."""
    lines = job.log.read_text(encoding="utf-8", errors="replace").splitlines() if job.log.exists() else []
    told = [line.removeprefix("potstill: ") for line in lines if line.startswith("potstill: ")]
    if told:
        return told[-1].strip()
    how = f"killed by signal {-code}" if code < 0 else f"ended with {code}"
    return f"{how}; see {job.log}"
