"""The recipes of emoji and digits, made tiny: teachers from labels, then students of both architectures from them."""

import json

import pytest
import torch
from safetensors.torch import load_file

from potstill.models.load import load_model
from potstill.report import build_report
from potstill.run import distill, evaluate_model

SMALL = [
    *("train.batch_size=8", "train.steps=3", "train.warmup_steps=0", "train.threads=1", "train.log_every=1"),
    *("train.checkpoint_every=3", "evaluate.samples=40", "evaluate.shown=3"),
]
EMOJI = ["data.concepts=12", "data.image_size=16"]
CNN = "student.fields={embedding_size: 8, hidden_sizes: [8, 16], depths: [1, 1], layer_type: basic}"
VIT = [
    f"student.fields.{field}={value}"
    for field, value in (
        *(("patch_size", 8), ("hidden_size", 16), ("intermediate_size", 16)),
        *(("num_hidden_layers", 1), ("num_attention_heads", 2)),
    )
]


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())["models"]


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """The folder of a tiny run of teach-emoji-vit, after one of the CNN whose answers it goes on with."""
    folder = tmp_path_factory.mktemp("emoji")
    distill("teach-emoji-cnn", folder / "cnn", overrides=[*SMALL, *EMOJI, CNN])
    later = [
        word
        for stage in ("stages[1]", "stages[2]")
        for word in (
            f"{stage}.teacher.model={folder / 'cnn' / 'student'}",
            f"{stage}.train={{steps: 3}}",
            f"{stage}.objectives[2].classes=12",
        )
    ]
    sizes = [*SMALL, *EMOJI, *VIT, "objectives[1].classes=12"]
    distill("teach-emoji-vit", folder / "vit", overrides=[*sizes, *later])
    return folder / "vit"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The folder of a tiny run of teach-digits."""
    folder = tmp_path_factory.mktemp("digits") / "cnn"
    distill("teach-digits", folder, overrides=[*SMALL, CNN])
    return folder


def test_a_vit_knows_the_names_and_leaves_its_read_out_behind(vit):
    model = load_model(vit / "student")
    assert type(model).__name__ == "ViTForImageClassification"
    assert model.config.id2label[0] == "panda"
    assert model.config.num_labels == len(model.config.id2label) == 12
    assert not any("patches" in name for name in model.state_dict())
    rows = [json.loads(line) for line in (vit / "history.jsonl").read_text().splitlines()]
    assert {name for row in rows for name in row.get("terms", ())} == {"name", "patches", "answer"}


def test_scores_are_written_by_split_and_shown_in_the_report(vit):
    scores = metrics(vit)["student"]
    for entry in (scores, scores["splits"]["heldout_vendor"]):
        main = entry["tasks"]["main"]
        assert main["samples"] == 40
        assert {"accuracy", "macro_accuracy", "top5_accuracy", "ece", "nll", "kinds"} <= set(main)
        assert "animals-nature" in main["kinds"]
    assert "On the split heldout_vendor" in build_report(vit).read_text()
    shown = json.loads((vit / "samples.json").read_text())
    assert len(shown) == 3
    assert all(sample["truth"] in load_model(vit / "student").config.id2label.values() for sample in shown)


@pytest.mark.parametrize(("recipe", "sizes"), [("kd-emoji", VIT), ("kd-emoji-cnn", [CNN])])
def test_a_vit_teaches_students_of_both_architectures(vit, tmp_path, recipe, sizes):
    given = [*SMALL, *EMOJI, *sizes, f"teacher.model={vit / 'student'}"]
    distill(recipe, tmp_path / "run", overrides=given)
    student = metrics(tmp_path / "run")["student"]
    for entry in (student, student["splits"]["heldout_vendor"]):
        assert entry["fidelity"]["main"]["samples"] == 40
        assert 0 <= entry["fidelity"]["main"]["agreement"] <= 1
        assert entry["fidelity"]["main"]["kl"] > 0
    family = {"kd-emoji": "ViTForImageClassification", "kd-emoji-cnn": "ResNetForImageClassification"}[recipe]
    assert type(load_model(tmp_path / "run" / "student")).__name__ == family


def test_a_teacher_with_batch_norm_is_left_as_it_was_and_the_student_gathers_statistics(digits, tmp_path):
    before = load_file(digits / "student" / "model.safetensors")
    teacher = load_model(digits / "student")
    run = distill("kd-digits", tmp_path / "run", overrides=[*SMALL, f"teacher.model={digits / 'student'}"])
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    counted = [value for name, value in run.student.state_dict().items() if name.endswith("num_batches_tracked")]
    assert counted
    assert all(int(value) == 3 for value in counted)
    assert run.student.config.num_channels == 1
    assert metrics(tmp_path / "run")["student"]["splits"]["heldout_style"]["fidelity"]["main"]["samples"] == 40


def test_a_saved_classifier_is_measured_on_every_split_of_the_recipe(digits):
    given = {"recipe": "kd-digits", "samples": 20, "teacher": digits / "student"}
    entry = evaluate_model(digits / "student", **given)
    assert entry["tasks"]["main"]["samples"] == 20
    assert entry["fidelity"]["main"]["agreement"] == 1.0
    assert entry["splits"]["heldout_style"]["fidelity"]["main"]["kl"] == pytest.approx(0, abs=1e-6)
    assert "splits" not in evaluate_model(digits / "student", **given, split="validation")
