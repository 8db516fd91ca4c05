"""Run folders put together by somebody else, two runs in one folder, disks that refuse: one message, nothing run."""

import errno
import multiprocessing
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch

from potstill.errors import InputError, IntegrityError
from potstill.recipe import find_recipe, load_recipe
from potstill.run import RunFolder, distill
from potstill.run import folder as run_folder
from potstill.train.checkpoint import list_checkpoints, seal, verify
from potstill.train.history import History

SHORT = ("train.steps=2", "train.checkpoint_every=1", "evaluate.samples=8", "evaluate.shown=1")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, coca_teacher):
    """A run that crashed after its second checkpoint of three steps, and its overrides."""
    overrides = [
        *(f"teacher.model={coca_teacher}", "data.concepts=12", "student={builder: depth, layers: 1}"),
        *("train.batch_size=8", "train.log_every=1", "train.warmup_steps=0", "train.threads=1", *SHORT),
        *("train.steps=3", "evaluate.shown=0"),
    ]
    folder = tmp_path_factory.mktemp("stopped") / "run"

    def crash(event):
        if event["event"] == "step" and event["step"] == 3:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        distill("kd-scenes", folder, overrides=overrides, progress=crash)
    assert [p.name for p in list_checkpoints(folder / "checkpoints")] == ["checkpoint-1", "checkpoint-2"]
    return folder, overrides


@pytest.fixture
def resume(stopped, tmp_path):
    """``resume(change)`` resumes a copy of the crashed run after a change to it; returns the notes."""
    folder, overrides = stopped

    def go(change=lambda run: None):
        run, notes = tmp_path / "run", []
        shutil.copytree(folder, run)
        change(run)
        distill("kd-scenes", run, overrides=overrides, resume=True, progress=lambda e: notes.append(e.get("text")))
        return [note for note in notes if note]

    return go


def poisoned(run, file):
    """Make a state of both checkpoints run code when it is unpickled, under a manifest that holds."""

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(run.parent / "owned"),)

    for checkpoint in list_checkpoints(run / "checkpoints"):
        torch.save({"state": Code()}, checkpoint / file)
        seal(checkpoint)


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_no_state_of_a_checkpoint_can_run_code(resume, tmp_path, file):
    with pytest.raises(IntegrityError, match="which could run code"):
        resume(lambda run: poisoned(run, file))
    assert not (tmp_path / "owned").exists()


def newest(run):
    return run / "checkpoints" / "checkpoint-2"


def swap(run):
    """Put the weights of the older checkpoint into the newer one."""
    shutil.copy(run / "checkpoints" / "checkpoint-1" / "student.safetensors", newest(run) / "student.safetensors")


def link(run):
    (newest(run) / "policy.json").rename(newest(run).parent / "policy.json")
    (newest(run) / "policy.json").symlink_to(newest(run).parent / "policy.json")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (swap, r"student.safetensors: the file changed"),
        (link, "policy.json: a checkpoint holds no links"),
        (lambda run: (newest(run) / "optimizer.bin").write_bytes(b"x"), "the manifest does not list this file"),
        (lambda run: (newest(run) / "trainer_state.json").write_bytes(b""), "trainer_state.json: the file changed"),
    ],
    ids=["swapped", "a link", "one more", "empty"],
)
def test_a_damaged_checkpoint_of_any_kind_is_passed_over_for_an_older_one(resume, change, why):
    damaged, start = resume(change)
    assert why in damaged
    assert start == "going on from checkpoint-1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda run: (run / "progress.json").write_text("{"),
            r"progress\.json: cannot be read as JSON.*Delete the file",
        ),
        (lambda run: (run / "progress.json").write_text("[" * 9999), r"progress\.json: cannot be read as JSON"),
        (lambda run: (run / "progress.json").write_text('{"stage": 7}'), r"progress\.json: does not fit the recipe"),
        (lambda run: (run / "progress.json").mkdir(), r"progress\.json: cannot be read as JSON"),
        (lambda run: (run / "environment.json").write_text(""), r"environment\.json: cannot be read.*Delete the file"),
        (lambda run: (run / "recipe.yaml").write_bytes(b"\xff"), r"recipe\.yaml: cannot be read"),
        (lambda run: (run / "recipe.yaml").write_text("version: [1"), r"recipe\.yaml, line 1.*is not YAML"),
        (lambda run: (run / "history.jsonl").write_text("x\n{}\n"), r"history\.jsonl, line 1: this line is no event"),
        (
            lambda run: (run / "history.jsonl.tmp").symlink_to("/tmp/x"),
            r"history\.jsonl\.tmp: is a link that leads out",
        ),
        (lambda run: (run / "plan.json").symlink_to(run / "plan.json"), r"plan\.json: is a link that leads out"),
        (lambda run: (run / "stages").symlink_to("/"), r"stages: is a link that leads out"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(resume, change, message):
    def replace(run):
        for name in ("plan.json",):
            (run / name).unlink()
        change(run)

    with pytest.raises((IntegrityError, InputError), match=message) as error:
        resume(replace)
    assert error.value.exit_code == 2


def test_files_of_another_user_are_not_resumed(resume, monkeypatch, tmp_path):
    """Whoever wrote a checkpoint also wrote the hashes beside it."""
    theirs = os.geteuid() + 1
    own = Path.lstat

    def lstat(path):
        found = list(own(path))
        if path.name == "optimizer.pt":
            found[4] = theirs
        return os.stat_result(found)

    monkeypatch.setattr(Path, "lstat", lstat)
    with pytest.raises(IntegrityError, match=rf"optimizer\.pt: belongs to another user \(number {theirs}\).*cp -r"):
        resume()
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_disk_that_gives_all_files_one_owner_is_no_stranger(stopped, monkeypatch):
    """As NFS does with files of root: the number differs from the process's, but so does that of a file made now."""
    monkeypatch.setattr(run_folder.os, "geteuid", lambda: 12345)
    run_folder._refuse_foreign(stopped[0])


def test_the_lock_is_not_opened_through_a_link(tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(IntegrityError, match=r"\.lock"):
        distill("kd-scenes", tmp_path / "run")
    assert (tmp_path / "mine").read_text() == "precious"


def hold(path, ready):
    folder = RunFolder(path)
    folder.open(load_recipe("kd-scenes"), resume=False)
    ready.send(os.getpid())
    signal.pause()


def test_of_two_processes_in_one_folder_the_second_is_refused_until_the_first_is_gone(tmp_path):
    ours, theirs = multiprocessing.Pipe()
    first = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path / "run", theirs), daemon=True)
    first.start()
    assert ours.poll(60)
    second = RunFolder(tmp_path / "run")
    with pytest.raises(InputError, match="another process is running in this folder") as error:
        second.open(load_recipe("kd-scenes"), resume=False)
    assert str(tmp_path / "run") in str(error.value)
    (tmp_path / "run" / "recipe.yaml").write_text(find_recipe("kd-scenes").read_text())
    with pytest.raises(InputError, match="another process"):
        second.open(load_recipe("kd-scenes"), resume=True)
    first.kill()
    first.join()
    second.open(load_recipe("kd-scenes"), resume=True)  # the lock died with its process
    second.release()


# -- disks that refuse -------------------------------------------------------------------------------------------------

REFUSALS = {
    "environment.json": errno.EACCES,
    "recipe.yaml": errno.EROFS,
    "plan.json": errno.EDQUOT,
    "history.jsonl": errno.ENOSPC,
    "policy.json": errno.ENOSPC,
    "manifest.json": errno.EDQUOT,
    "progress.json": errno.ENOSPC,
    "student": errno.EDQUOT,
    "metrics.json": errno.EROFS,
    "samples.json": errno.ENOSPC,
    "report.html": errno.ENOSPC,
}


@pytest.mark.parametrize("name", REFUSALS)
def test_wherever_the_disk_refuses_the_run_says_so_and_goes_on_later(tmp_path, tiny_run, monkeypatch, name):
    run, number, replace = tmp_path / "run", REFUSALS[name], os.replace

    def refuse(path):
        if Path(path).name == name:
            raise OSError(number, os.strerror(number), str(path))

    def replace_or_refuse(source, target):
        refuse(target)
        replace(source, target)

    overrides = tiny_run(*SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_or_refuse)
        if name == "history.jsonl":
            patch.setattr(History, "add", lambda self, event: refuse(self.path))
        with pytest.raises((IntegrityError, InputError), match=os.strerror(number)) as error:
            distill("kd-scenes", run, overrides=overrides)
    assert error.value.exit_code == 2
    assert name in str(error.value)
    assert not [p for p in run.rglob("*") if p.name.endswith((".tmp", ".partial", ".old", ".growing"))]
    for checkpoint in list_checkpoints(run / "checkpoints"):
        verify(checkpoint)
    is_begun = run.exists()
    assert is_begun == (name not in ("environment.json", "recipe.yaml"))
    assert distill("kd-scenes", run, overrides=overrides, resume=is_begun).report.is_file()


def test_a_file_that_may_not_grow_is_a_full_disk(tmp_path, tiny_run):
    """The real thing, from whichever library writes: no file of this process may be larger than 20 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(IntegrityError, match="the disk is full") as error:
            distill("kd-scenes", tmp_path / "run", overrides=tiny_run(*SHORT))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "--resume" in error.value.hint
    assert not list_checkpoints(tmp_path / "run" / "checkpoints")
    assert not (tmp_path / "run" / "checkpoints" / ".growing").exists()
    assert distill("kd-scenes", tmp_path / "run", overrides=tiny_run(*SHORT), resume=True).report.is_file()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(IntegrityError, match=r"cannot be written \(Permission denied\)"):
        distill("kd-scenes", tmp_path / "run")
