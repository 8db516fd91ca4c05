"""The run folder: what lies in it, who may write to it."""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from potstill._version import __version__
from potstill.errors import InputError, IntegrityError, RecipeError
from potstill.recipe import Recipe, dump_recipe, load_recipe
from potstill.train.checkpoint import read_json, write_json


class RunFolder:
    """Paths of a run, and a lock so that only one process writes to it.

    ==================  =========================================================================
    ``recipe.yaml``     the resolved recipe
    ``plan.json``       taps, layer maps, parts, objectives, parameters
    ``history.jsonl``   one line per logged step and per round of the policy
    ``checkpoints/``    complete checkpoints, newest last
    ``progress.json``   which stage runs, and whether training is done
    ``metrics.json``    per model: task scores, fidelity, cost
    ``samples.json``    pictures, questions and answers for the report
    ``environment.json``  machine, versions, commit, command
    ``student/``        the exported student
    ``report.html``     the report
    ==================  =========================================================================

    Args:
        path: The folder.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._lock = None

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def start(self, recipe: Recipe, *, resume: bool) -> Recipe:
        """Create the folder for a new run, or check that it holds the run to resume; return the recipe to follow."""
        if resume:
            if not (self / "recipe.yaml").is_file():
                raise InputError(
                    "there is no run to resume", where=str(self.path), hint="Start it without --resume first."
                )
            stored = load_recipe(self / "recipe.yaml")
            _refuse_difference(stored.model_dump(), recipe.model_dump(), "")
            self._take_lock()
            return stored
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise InputError(
                "the output folder is not empty",
                where=str(self.path),
                hint="Choose another with --out, or go on with this run: --resume.",
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            (self / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
        except OSError as error:
            raise explain_disk(error, self.path) from error
        return recipe

    def _take_lock(self) -> None:
        if int(os.environ.get("RANK", 0)):
            return
        self._lock = open(self / ".lock", "w")  # noqa: SIM115 - held open for as long as the run lasts
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                "another process is running in this folder", where=str(self.path), hint="Choose another with --out."
            ) from error

    def release(self) -> None:
        """Let others write again."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
            (self / ".lock").unlink(missing_ok=True)

    def progress(self) -> dict[str, Any]:
        """Return {"stage": index of the stage to run, "trained": bool}."""
        path = self / "progress.json"
        return read_json(path) if path.exists() else {"stage": 0, "trained": False}

    def set_progress(self, stage: int, trained: bool) -> None:
        """Record where the run is."""
        write_json(self / "progress.json", {"stage": stage, "trained": trained})


def _refuse_difference(stored: Any, given: Any, where: str) -> None:
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in stored:
            _refuse_difference(stored[key], given.get(key), f"{where}.{key}".lstrip("."))
    elif isinstance(stored, list | tuple) and isinstance(given, list | tuple) and len(stored) == len(given):
        for i, (a, b) in enumerate(zip(stored, given)):
            _refuse_difference(a, b, f"{where}[{i}]")
    elif stored != given:
        raise RecipeError(
            "differs from the run to resume",
            where=where,
            expected=repr(stored),
            got=given,
            hint="Resume with the same recipe, or start a new run in another folder.",
        )


def explain_disk(error: OSError, path: Path) -> IntegrityError:
    """Turn an operating-system error into a message about the folder."""
    return IntegrityError(
        f"cannot write ({error.strerror or error})",
        where=str(error.filename or path),
        hint="Free space or choose a writable folder; a run that has a checkpoint goes on with --resume.",
    )


def environment(recipe: Recipe) -> dict[str, Any]:
    """Describe machine, versions and command, for ``environment.json``."""
    packages = {}
    for name in ("torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "potstill": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **packages,
        "world_size": int(os.environ.get("WORLD_SIZE", 1)),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": recipe.train.precision,
        "seed": recipe.seed,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Return the commit of the checkout Potstill runs from, with "+" if it was changed; None if installed."""
    here = Path(__file__).resolve().parents[3]
    if not (here / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(here)]
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
        return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None
