"""The run folder: what lies in it, who may write to it."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from potstill._version import __version__
from potstill.errors import InputError, IntegrityError, PotstillError, RecipeError
from potstill.ranks import process_rank
from potstill.recipe import Recipe, dump_recipe, load_recipe
from potstill.train.checkpoint import read_json, write_json, write_text

DECIDES_BITS = (
    *("threads", "world_size", "deterministic", "matmul_precision", "cpu", "cpu_kernels", "gpu", "cuda", "cudnn"),
    *("python", "potstill", "commit", "torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy"),
    *("pillow", "datasets"),
)
"""Fields of ``environment.json`` on which the last bit of a weight may depend."""

UNFINISHED = (
    *("*.json.tmp", "*.jsonl.tmp", "*.yaml.tmp", ".report.html.*.tmp", ".student.*.partial", ".student.*.old"),
    *("stages/*/*.tmp", "checkpoints/.growing", "checkpoints/*/.growing"),
)
"""What a process writes beside a file or folder before it takes its place."""


class RunFolder:
    """Paths of a run, and a lock so that only one process writes to it.

    ===================  ========================================================================
    ``recipe.yaml``      the resolved recipe
    ``plan.json``        taps, layer maps, parts, objectives, parameters; with several stages the
                         plan of the newest one, and under ``stages`` those of all so far
    ``history.jsonl``    one line per logged step and per round of the policy
    ``checkpoints/``     complete checkpoints, by stage if there are several
    ``nonfinite/``       batches that made a term or gradient NaN or Inf, by stage if there are several
    ``stages/``          the student at the end of each stage
    ``progress.json``    which stage runs, and whether training is done
    ``metrics.json``     per model: task scores, fidelity, cost
    ``samples.json``     pictures, questions and answers for the report
    ``attention.json``   attention of teacher and student, for the report
    ``environment.json``  machine, versions, commit, command
    ``student/``         the exported student
    ``report.html``      the report
    ===================  ========================================================================

    ``metrics.json`` holds ``version`` (1), ``split``, ``samples`` and ``models``: for "teacher" and "student" the keys
    ``role``, ``class``, ``tasks`` (scores per task), ``fidelity`` (to the teacher, or null), ``cka`` (or null),
    ``cost``, and, where the recipe asks for more splits, ``splits``: split name -> {``tasks`` and, for a student
    with a teacher, ``fidelity``: as above}.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.is_writer = process_rank() == 0  # of several processes only the first writes
        self._is_new = False
        self._lock = None

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def is_recorded(self) -> bool:
        """Whether the folder holds a run that can be resumed."""
        return (self / "recipe.yaml").is_file()

    def open(self, recipe: Recipe, *, resume: bool) -> Recipe:
        """Create the folder for a new run, or check that it holds the run to resume; return the recipe to follow.

        Only what is measured at the end (``evaluate``) may differ from the run to resume.

        Raises:
            InputError: The folder is in use, not empty, or holds no run to resume.
            RecipeError: The run to resume was started with another recipe; names the first field.
            IntegrityError: The folder cannot be written, or the run to resume was put there by somebody else.
        """
        if resume:
            if not self.is_recorded:
                raise InputError(
                    "there is no run to resume", where=str(self.path), hint="Start it without --resume first."
                )
            self._take_lock()
            try:
                _refuse_foreign(self.path)
                stored = load_recipe(self / "recipe.yaml")
                _refuse_difference(_trained_by(stored), _trained_by(recipe), "")
            except (PotstillError, OSError):
                self.release()
                raise
            self._clear()
            return stored.model_copy(update={"evaluate": recipe.evaluate})
        if not self.is_writer:
            return recipe
        if self.path.exists() and not self.path.is_dir():
            raise InputError("is a file", where=str(self.path), expected="a folder", hint="Choose another with --out.")
        self._is_new = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        if not self._is_free():
            self.release()
            again = "go on with this run: --resume" if self.is_recorded else "empty it"
            raise InputError(
                "the output folder is not empty", where=str(self.path), hint=f"Choose another with --out, or {again}."
            )
        return recipe

    def record(self, recipe: Recipe, *, resume: bool) -> list[str]:
        """Write down recipe and environment; return what differs from the process before, as "threads: 1, now 2".

        All such differences since the start stay in ``environment.json`` under ``changes``.
        """
        if not self.is_writer:
            return []
        path, before = self / "environment.json", {}
        if resume and path.is_file():
            before = read_json(path, hint="Delete the file and resume: it is written anew.")
            before = before if isinstance(before, dict) else {}
        now = environment(recipe)
        if before:
            now["first_started"] = before.get("first_started") or before.get("started")
        # A field that an older version did not write is not known to differ.
        new = [f"{k}: {before[k]}, now {now[k]}" for k in DECIDES_BITS if k in before and before[k] != now[k]]
        noted = before.get("changes")
        now["changes"] = [*(noted if isinstance(noted, list) else []), *new]
        # The recipe first: a folder that has one can be resumed, one that has none can be started in again.
        write_text(self / "recipe.yaml", dump_recipe(recipe))
        try:
            write_json(path, now)
        except OSError:
            if not resume:  # a run that could not even begin leaves nothing
                (self / "recipe.yaml").unlink(missing_ok=True)
            raise
        return new

    def _is_free(self) -> bool:
        """Whether nothing lies here but what a run leaves that was killed before it was recorded."""
        return all(
            entry.name in (".lock", "recipe.yaml.tmp")
            or (entry.name == "checkpoints" and not any(path.is_file() for path in entry.rglob("*")))
            for entry in self.path.iterdir()
        )

    def _clear(self) -> None:
        """Remove what a killed process was writing, none of which was in use yet."""
        if not self.is_writer:
            return
        for pattern in UNFINISHED:
            for path in self.path.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _take_lock(self) -> None:
        if not self.is_writer:
            return
        while True:
            # A link would be followed to a file of somebody else's choice.
            number = os.open(self / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            self._lock = open(number, "w")  # noqa: SIM115 - held open for as long as the run lasts
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                self._lock.close()
                self._lock = None
                raise InputError(
                    "another process is running in this folder", where=str(self.path), hint="Choose another with --out."
                ) from error
            if self._owns_lock():
                return
            self._lock.close()  # the run before removed the file between our opening and locking it

    def _owns_lock(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nothing happens if it is held already
        except BlockingIOError:
            return False
        path = self / ".lock"
        return path.exists() and os.path.samestat(os.fstat(self._lock.fileno()), os.stat(path))

    def release(self) -> None:
        """Let others write again; a new folder in which nothing was written is removed."""
        if self._lock is not None and not self._lock.closed:
            if self._owns_lock():  # not if an interruption came before it was
                (self / ".lock").unlink()
            self._lock.close()
            self._lock = None
            if self._is_new and not any(path.is_file() for path in self.path.rglob("*")):
                shutil.rmtree(self.path)

    def progress(self, stages: int) -> dict[str, Any]:
        """Return {"stage": index of the stage to run, "trained": bool}."""
        path = self / "progress.json"
        if not path.exists():
            return {"stage": 0, "trained": False}
        hint = "Delete the file and resume: the run then goes on from its checkpoints."
        state = read_json(path, hint=hint)
        stage = state.get("stage") if isinstance(state, dict) else None
        if not isinstance(stage, int) or not 0 <= stage < stages or not isinstance(state.get("trained"), bool):
            raise IntegrityError("does not fit the recipe", where=str(path), got=state, hint=hint)
        return state

    def set_progress(self, stage: int, trained: bool) -> None:
        """Record where the run is."""
        write_json(self / "progress.json", {"stage": stage, "trained": trained})


def _refuse_foreign(folder: Path) -> None:
    """Refuse a run with links that lead out of its folder, which would be written through, or with others' files.

    Hashes say that a checkpoint is complete, not who wrote it. Whose the files are is compared with a file made now:
    on a network disk the owner's number need not be that of the process.
    """
    with tempfile.TemporaryFile(dir=folder) as probe:
        own = {os.fstat(probe.fileno()).st_uid, os.geteuid()}
    home = folder.resolve()
    for path in (folder, *sorted(folder.rglob("*"))):
        if path.is_symlink() and path is not folder and not _leads_inside(path, home):
            raise IntegrityError(
                "is a link that leads out of the run folder", where=str(path), hint="Put the file itself there."
            )
        owner = path.lstat().st_uid if path is not folder else path.stat().st_uid
        if path.name != ".lock" and owner not in own:
            raise IntegrityError(
                f"belongs to another user (number {owner})",
                where=str(path),
                hint="If you trust who wrote the run, copy its folder (cp -r) and resume the copy.",
            )


def _leads_inside(path: Path, home: Path) -> bool:
    try:
        return path.resolve(strict=True).is_relative_to(home)
    except (OSError, RuntimeError):  # to nothing, or to itself
        return False


def _trained_by(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude={"evaluate"})


def _refuse_difference(stored: Any, given: Any, where: str) -> None:
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in {**stored, **given}:
            _refuse_difference(stored.get(key), given.get(key), f"{where}.{key}".lstrip("."))
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


def environment(recipe: Recipe) -> dict[str, Any]:
    """Describe machine, versions and command, for ``environment.json``."""
    packages = {}
    for name in ("torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy", "pillow", "datasets"):
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
        "cpu_kernels": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **packages,
        "world_size": int(os.environ.get("WORLD_SIZE", 1)),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
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
