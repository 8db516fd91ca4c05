"""From a recipe to a finished run folder, on a tiny untrained CoCa."""

import json

import pytest
import torch
import yaml
from safetensors import safe_open

import potstill
from potstill.models.load import load_model
from potstill.recipe import load_recipe
from potstill.run import distill, plan

OPTIMA = ("policy.round_steps=3", "policy.probe_batches=1", "policy.warmup_rounds=1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, coca_teacher):
    out = tmp_path_factory.mktemp("runs") / "optima"
    events = []
    overrides = [
        *(
            f"teacher.model={coca_teacher}",
            "data.concepts=12",
            "student={builder: depth, layers: 1}",
            "train.batch_size=8",
            "train.steps=12",
        ),
        *("train.checkpoint_every=4", "train.log_every=2", "train.warmup_steps=0", "train.threads=1"),
        *("evaluate.samples=24", "evaluate.shown=4", "evaluate.splits=[heldout_vendor]", *OPTIMA),
    ]
    before = torch.get_rng_state()
    run = distill("optima-scenes", out, overrides=overrides, progress=events.append)
    torch.set_rng_state(before)
    return run, events, overrides


def read(run, name):
    return json.loads((run.folder / name).read_text())


def test_a_run_leaves_every_documented_file(finished):
    run, _, _ = finished
    names = {path.name for path in run.folder.iterdir()}
    assert names == {
        *("recipe.yaml", "plan.json", "history.jsonl", "checkpoints", "stages", "progress.json", "metrics.json"),
        *("samples.json", "attention.json", "environment.json", "student", "report.html"),
    }
    assert run.report.stat().st_size > 10_000
    assert [p.name for p in sorted((run.folder / "checkpoints").iterdir())] == ["checkpoint-12", "checkpoint-8"]


def test_metrics_hold_the_documented_keys(finished):
    metrics = read(finished[0], "metrics.json")
    assert metrics["version"] == 1
    assert metrics["split"] == "test"
    assert metrics["samples"] == 24
    assert list(metrics["models"]) == ["teacher", "student"]
    for role, entry in metrics["models"].items():
        assert entry["role"] == role
        assert entry["class"] == "CocaModel"
        assert set(entry["tasks"]) == {"caption", "vqa", "entailment", "nlvr2"}
        assert 0 <= entry["tasks"]["vqa"]["accuracy"] <= 1
        assert 0 <= entry["tasks"]["caption"]["objects"] <= 1
        assert set(entry["splits"]) == {"heldout_vendor"}
        assert set(entry["splits"]["heldout_vendor"]["tasks"]) == set(entry["tasks"])
        assert {"parameters", "bytes", "flops_per_sample", "ms_per_sample", "peak_memory_bytes"} <= set(entry["cost"])
    teacher, student = metrics["models"].values()
    assert teacher["fidelity"] is None
    assert set(student["fidelity"]["vqa"]) >= {"agreement", "kl", "ece"}
    assert {row["module"] for row in student["cka"]} == {"image_encoder", "text_decoder", "multimodal_decoder"}
    assert student["cost"]["parameters"] < teacher["cost"]["parameters"]


def test_history_has_steps_and_rounds_with_rewards(finished):
    lines = [json.loads(line) for line in (finished[0].folder / "history.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    rounds = [line for line in lines if line["event"] == "round"]
    assert [line["step"] for line in steps] == [2, 4, 6, 8, 10, 12]
    assert [line["step"] for line in rounds] == [3, 6, 9, 12]
    assert [line["arm"] for line in rounds[:3]] == ["image_encoder", "text_decoder", "multimodal_decoder"]
    assert steps[0]["terms"]["vqa"]["weight"] == 1.0
    assert f"hidden.{steps[0]['arm']}" in steps[0]["terms"]
    assert set(rounds[0]["posterior"]["image_encoder"]) == {"mean", "std", "count"}
    assert {"reward", "reference", "probe"} <= set(rounds[0])


def test_plan_and_environment_say_what_ran(finished):
    run, _, overrides = finished
    saved = read(run, "plan.json")
    assert saved["steps"] == 12
    assert [m["name"] for m in saved["modules"]] == ["image_encoder", "text_decoder", "multimodal_decoder"]
    assert saved["modules"][0]["pairs"] == [
        {
            "student": "image_encoder.blocks.0",
            "teacher": "image_encoder.blocks.1",
            "student_shape": [10, 36, 16],  # 8 rows, two of them with a second picture
            "teacher_shape": [10, 36, 16],
            "projector": False,
        }
    ]
    assert saved["policy"]["arms"] == ["image_encoder", "text_decoder", "multimodal_decoder"]
    assert [o["role"] for o in saved["objectives"]] == ["prediction"] * 4 + ["hidden"] * 3
    assert {"python", "torch", "transformers", "cpu", "threads", "command", "started", "world_size"} <= set(
        read(run, "environment.json")
    )
    # Shapes are probed on the first batch, whose length is that of its longest text.
    assert plan("optima-scenes", overrides)[0] == saved


def test_the_student_loads_alone_and_equals_the_one_in_memory(finished):
    run, _, _ = finished
    loaded = load_model(run.folder / "student", where="student")
    ours = run.student.state_dict()
    assert loaded.state_dict().keys() == ours.keys()
    assert all(torch.equal(loaded.state_dict()[k], ours[k].cpu()) for k in ours)
    assert loaded.config.image_layers == 1
    with safe_open(run.folder / "student" / "model.safetensors", framework="pt") as file:
        assert not [k for k in file.keys() if "parts" in k or "projector" in k]  # noqa: SIM118
    assert (run.folder / "student" / "tokenizer.json").is_file()


def test_no_hook_stays_on_the_student(finished):
    assert not [n for n, m in finished[0].student.named_modules() if m._forward_hooks or m._forward_pre_hooks]


def test_events_tell_a_display_everything(finished):
    _, events, _ = finished
    kinds = [event["event"] for event in events]
    assert kinds[0] == "plan"
    assert kinds[1:13] == ["step"] * 12
    assert kinds[-1] == "done"
    assert events[1]["arm"] == "image_encoder"


def test_the_written_recipe_says_the_same_again(finished):
    run, _, overrides = finished
    again = load_recipe(run.folder / "recipe.yaml")
    assert again == load_recipe("optima-scenes", overrides)
    assert yaml.safe_load((run.folder / "recipe.yaml").read_text())["policy"]["gamma"] == 0.98


def test_resuming_a_finished_run_only_measures_again(finished):
    run, _, overrides = finished
    before = {p: p.stat().st_mtime_ns for p in (run.folder / "checkpoints").rglob("*")}
    history = (run.folder / "history.jsonl").read_text()
    events = []
    again = distill(
        "optima-scenes",
        run.folder,
        overrides=[*overrides, "evaluate.samples=12", "evaluate.shown=0", "evaluate.splits=[]"],
        resume=True,
        progress=events.append,
    )
    assert "step" not in [event["event"] for event in events]
    assert any("measuring again" in event.get("text", "") for event in events)
    assert {p: p.stat().st_mtime_ns for p in (run.folder / "checkpoints").rglob("*")} == before
    assert (run.folder / "history.jsonl").read_text() == history
    assert again.metrics["samples"] == 12
    assert load_recipe(run.folder / "recipe.yaml").evaluate.samples == 12
    assert all(torch.equal(a, b) for a, b in zip(again.student.parameters(), run.student.parameters()))


def test_plan_writes_nothing(tmp_path, tiny_run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (one,) = plan("optima-scenes", tiny_run(*OPTIMA))
    assert one["modules"]
    assert not list(tmp_path.iterdir())


def test_a_projector_is_trained_but_not_exported(tmp_path, tiny_run):
    narrow = ["student={builder: width, width: 8}", "policy=null", "evaluate.samples=8", "evaluate.shown=0"]
    run = distill(
        "optima-scenes", tmp_path / "run", overrides=tiny_run("train.steps=2", "train.checkpoint_every=2", *narrow)
    )
    parts = read(run, "plan.json")["parts"]
    assert [p["name"] for p in parts] == ["hidden_image_encoder", "hidden_text_decoder", "hidden_multimodal_decoder"]
    assert (run.folder / "checkpoints" / "checkpoint-2" / "parts.safetensors").is_file()
    with safe_open(run.folder / "student" / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) <= set(run.student.state_dict())


@pytest.mark.parametrize("name", ["optima-scenes", "kd-scenes"])
def test_packaged_recipes_with_a_teacher_run_two_steps(tmp_path, tiny_run, name):
    short = ["train.steps=2", "evaluate.samples=8", "evaluate.shown=0"]
    run = distill(name, tmp_path / "run", overrides=tiny_run(*short, *(OPTIMA if name == "optima-scenes" else ())))
    assert run.metrics["models"]["student"]["tasks"]


def test_the_public_names_do_a_run_in_a_few_lines(tmp_path, tiny_run):
    overrides = tiny_run("train.steps=2", "evaluate.samples=8", "evaluate.shown=1")
    run = potstill.distill("kd-scenes", tmp_path / "run", overrides=overrides)
    scores = potstill.evaluate_model(run.folder / "student", run.folder / "recipe.yaml", samples=8)
    assert scores["tasks"] == run.metrics["models"]["student"]["tasks"]
