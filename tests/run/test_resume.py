"""Interrupted runs go on and end bit for bit where the straight run ends."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from potstill.errors import InputError, IntegrityError, Interrupted
from potstill.recipe import load_recipe
from potstill.run import distill, plan
from potstill.run.folder import DECIDES_BITS
from potstill.train.checkpoint import seal

OPTIMA = ("policy.round_steps=3", "policy.probe_batches=1", "policy.warmup_rounds=1")
QUIET = ("evaluate.samples=8", "evaluate.shown=0")
# teach-scenes with a model and stages of a few steps.
SIZES = "image_width: 16, image_heads: 2, image_layers: 1, text_width: 16, text_heads: 2, text_layers: 1"
REST = "multimodal_layers: 1, max_text_length: 40, caption_queries: 36, embed_dim: 16, max_images: 2"
TEACH = (
    f"student.fields={{stem: conv, {SIZES}, {REST}, tie_word_embeddings: true, pooling: cascade}}",
    *(
        "data.concepts=12",
        "train.batch_size=8",
        "train.checkpoint_every=2",
        "train.log_every=1",
        "train.threads=1",
    ),
    *("stages[0].objectives[0].classes=12", "stages[0].objectives[1].classes=12"),
    *(f"stages[{i}].train.{field}" for i in range(3) for field in ("steps=3", "warmup_steps=0")),
    *(f"stages[{i}].objectives[1].{field}" for i in (1, 2) for field in ("supervised=1",)),
    *QUIET,
)
STAGES = ["naming", "pointing", "tasks"]


class CrashError(Exception):
    pass


def killer(step, how, stage=0):
    """A progress function that ends the run at a step of a stage."""
    seen = {"stages": 0}

    def progress(event):
        seen["stages"] += event["event"] == "plan"
        if event["event"] == "step" and event["step"] == step and seen["stages"] == stage + 1:
            if how == "crash":
                raise CrashError
            os.kill(os.getpid(), how)

    return progress


def both(first, second):
    def progress(event):
        first(event)
        second(event)

    return progress


def student_of(folder):
    return load_file(folder / "student" / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, coca_teacher):
    out = tmp_path_factory.mktemp("straight") / "run"
    overrides = [
        *(
            f"teacher.model={coca_teacher}",
            "data.concepts=12",
            "student={builder: depth, layers: 1}",
            "train.batch_size=8",
            "train.steps=8",
        ),
        *("train.checkpoint_every=3", "train.log_every=2", "train.warmup_steps=0", "train.threads=1", *OPTIMA, *QUIET),
    ]
    distill("optima-scenes", out, overrides=overrides)
    return out, overrides


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, "crash"])
def test_an_interrupted_run_ends_like_the_straight_one(tmp_path, straight, how):
    folder, overrides = straight
    with pytest.raises(CrashError if how == "crash" else Interrupted) as error:
        distill("optima-scenes", tmp_path / "run", overrides=overrides, progress=killer(5, how))
    if how != "crash":
        assert error.value.exit_code == 130
        assert "--resume" in str(error.value)
        assert (tmp_path / "run" / "checkpoints" / "checkpoint-5").is_dir()
    events = []
    torch.manual_seed(99)  # what the global generator did in between must not matter
    distill("optima-scenes", tmp_path / "run", overrides=overrides, resume=True, progress=events.append)
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert notes == [f"going on from checkpoint-{3 if how == 'crash' else 5}"]
    assert same(student_of(folder), student_of(tmp_path / "run"))
    assert (tmp_path / "run" / "recipe.yaml").read_text() == (folder / "recipe.yaml").read_text()


def test_a_run_that_fails_before_its_first_checkpoint_starts_over(tmp_path, straight):
    folder, overrides = straight
    with pytest.raises(CrashError):
        distill("optima-scenes", tmp_path / "run", overrides=overrides, progress=killer(1, "crash"))
    events = []
    distill("optima-scenes", tmp_path / "run", overrides=overrides, resume=True, progress=events.append)
    assert "no checkpoint was written yet: starting at step 0" in [event.get("text") for event in events]
    assert same(student_of(folder), student_of(tmp_path / "run"))


def test_a_damaged_checkpoint_is_passed_over_and_said_so(tmp_path, straight):
    folder, overrides = straight
    with pytest.raises(CrashError):
        distill("optima-scenes", tmp_path / "run", overrides=overrides, progress=killer(7, "crash"))
    newest = tmp_path / "run" / "checkpoints" / "checkpoint-6"
    (newest / "student.safetensors").write_bytes(b"half")
    events = []
    distill("optima-scenes", tmp_path / "run", overrides=overrides, resume=True, progress=events.append)
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert "damaged" in notes[0]
    assert "checkpoint-6" in notes[0]
    assert notes[1] == "going on from checkpoint-3"
    assert same(student_of(folder), student_of(tmp_path / "run"))


def test_a_run_without_any_whole_checkpoint_says_why(tmp_path, straight):
    _, overrides = straight
    with pytest.raises(CrashError):
        distill("optima-scenes", tmp_path / "run", overrides=overrides, progress=killer(4, "crash"))
    (tmp_path / "run" / "checkpoints" / "checkpoint-3" / "manifest.json").unlink()
    with pytest.raises(IntegrityError, match=r"no checkpoint can be resumed: .*manifest\.json.* missing"):
        distill("optima-scenes", tmp_path / "run", overrides=overrides, resume=True)


def test_a_second_signal_in_the_middle_of_a_checkpoint_ends_the_run_and_the_one_before_is_taken(
    tmp_path, straight, monkeypatch
):
    folder, overrides = straight
    sealing = "potstill.train.resumable.seal"

    def interrupt_twice(path):
        if path.name == "checkpoint-6":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return seal(path)

    with monkeypatch.context() as patch:
        patch.setattr(sealing, interrupt_twice)
        with pytest.raises(Interrupted, match="--resume") as error:
            distill("optima-scenes", tmp_path / "run", overrides=overrides)
    assert error.value.exit_code == 130
    for name in ("checkpoints/.growing/checkpoint-6", ".student.ab.partial", ".student.cd.old"):  # what kills leave
        (tmp_path / "run" / name).mkdir(parents=True)
    for name in (".report.html.12.tmp", "plan.json.tmp", "mine.tmp"):
        (tmp_path / "run" / name).write_text("half")
    events = []
    distill("optima-scenes", tmp_path / "run", overrides=overrides, resume=True, progress=events.append)
    assert [e["text"] for e in events if e["event"] == "note"] == ["going on from checkpoint-3"]
    assert same(student_of(folder), student_of(tmp_path / "run"))
    hidden = {p.name for p in (tmp_path / "run").rglob("*") if p.name.startswith(".") or p.suffix == ".tmp"}
    assert hidden == {"mine.tmp"}  # no file that is not ours is touched


def test_a_run_killed_before_it_was_recorded_is_started_again_in_the_same_folder(tmp_path, straight):
    _, overrides = straight
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for name in (".lock", "recipe.yaml.tmp"):
        (run / name).write_text("")
    with pytest.raises(CrashError):
        distill("optima-scenes", run, overrides=overrides, progress=killer(1, "crash"))
    (run / "recipe.yaml").unlink()
    with pytest.raises(InputError, match="not empty"):  # but not over anything else
        distill("optima-scenes", run, overrides=overrides)


def test_a_run_resumed_in_another_environment_says_so_and_keeps_it_on_record(tmp_path, straight):
    _, overrides = straight
    run = tmp_path / "run"
    with pytest.raises(CrashError):
        distill("optima-scenes", run, overrides=overrides, progress=killer(4, "crash"))
    before = json.loads((run / "environment.json").read_text())
    assert before["changes"] == []
    assert set(DECIDES_BITS) <= set(before)
    (run / "environment.json").write_text(json.dumps({**before, "threads": 7, "torch": "2.1", "platform": "a toaster"}))
    events = []
    with pytest.raises(CrashError):
        distill(
            "optima-scenes", run, overrides=overrides, resume=True, progress=both(events.append, killer(7, "crash"))
        )
    changes = ["threads: 7, now 1", f"torch: 2.1, now {before['torch']}"]
    note = next(e["text"] for e in events if e["event"] == "note")
    assert all(change in note for change in changes)
    assert "not promised" in note
    events.clear()
    distill("optima-scenes", run, overrides=overrides, resume=True, progress=events.append)
    assert not any("not promised" in e.get("text", "") for e in events)  # the same environment as the process before
    assert json.loads((run / "environment.json").read_text())["changes"] == changes


def test_deterministic_kernels_are_switched_on_and_recorded(tmp_path, straight, monkeypatch):
    _, overrides = straight
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # the user's own choice is kept

    def crash(event):
        if event["event"] == "step":
            raise CrashError

    def refuse(event):
        if event["event"] == "step":
            raise RuntimeError("put_ does not have a deterministic implementation, but you set ...")

    try:
        with pytest.raises(CrashError):
            distill("optima-scenes", tmp_path / "a", overrides=[*overrides, "train.deterministic=true"], progress=crash)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
        assert json.loads((tmp_path / "a" / "environment.json").read_text())["deterministic"] is True
        with pytest.raises(InputError, match=r"train\.deterministic: put_ has no deterministic kernel"):
            distill("optima-scenes", tmp_path / "b", overrides=overrides, progress=refuse)
    finally:
        torch.use_deterministic_algorithms(False)


def test_an_interruption_while_measuring_keeps_the_training(tmp_path, straight):
    folder, overrides = straight

    def progress(event):
        if event["event"] == "measure":
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="--resume"):
        distill("optima-scenes", tmp_path / "run", overrides=overrides, progress=progress)
    distill("optima-scenes", tmp_path / "run", overrides=overrides, resume=True)
    assert same(student_of(folder), student_of(tmp_path / "run"))


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    out = tmp_path_factory.mktemp("taught") / "run"
    distill("teach-scenes", out, overrides=TEACH)
    return out


def test_several_stages_leave_one_student_and_both_plans(taught):
    saved = json.loads((taught / "plan.json").read_text())
    assert [stage["stage"] for stage in saved["stages"]] == STAGES
    assert saved["objectives"] == saved["stages"][-1]["objectives"]
    assert sorted(p.name for p in (taught / "checkpoints").iterdir()) == STAGES
    lines = [json.loads(line) for line in (taught / "history.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [(s, n) for s in STAGES for n in (1, 2, 3)]
    assert list(json.loads((taught / "metrics.json").read_text())["models"]) == ["student"]
    assert not any("parts" in name for name in student_of(taught))


@pytest.mark.parametrize(("stage", "step"), [(0, 2), (1, 1), (2, 3)])
def test_an_interruption_in_any_stage_ends_like_the_straight_run(tmp_path, taught, stage, step):
    with pytest.raises(Interrupted):
        distill("teach-scenes", tmp_path / "run", overrides=TEACH, progress=killer(step, signal.SIGTERM, stage))
    distill("teach-scenes", tmp_path / "run", overrides=TEACH, resume=True)
    assert same(student_of(taught), student_of(tmp_path / "run"))
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 9


def test_the_plan_of_several_stages_shows_each(taught):
    plans = plan("teach-scenes", TEACH)
    assert [p["objectives"][0]["loss"] for p in plans] == ["readout", "model_loss", "model_loss"]
    assert plans[0]["student"]["parameters"] == plans[1]["student"]["parameters"]
    assert [stage.name for stage in load_recipe("teach-scenes").stages] == STAGES
