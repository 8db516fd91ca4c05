"""The recipes for BLIP, made tiny: from labels, then a student of other heads from that teacher."""

import json

import pytest

from potstill.models.load import load_model
from potstill.run import distill, plan

SMALL = [
    *("data.concepts=12", "train.batch_size=4", "train.threads=1", "train.log_every=1", "train.checkpoint_every=2"),
    *("evaluate.samples=8", "evaluate.shown=2"),
]
SIZES = [
    f"student.fields.{part}.{field}={value}"
    for part in ("vision_config", "text_config")
    for field, value in (("hidden_size", 24), ("intermediate_size", 32))
]
STEPS = [f"stages[{i}].train.{key}" for i in (0, 1) for key in ("steps=2", "warmup_steps=0")]


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """The folder of a tiny run of teach-blip-vqa."""
    folder = tmp_path_factory.mktemp("blip") / "vqa"
    distill("teach-blip-vqa", folder, overrides=[*SMALL, *SIZES, *STEPS])
    return folder


def scores(folder):
    return json.loads((folder / "metrics.json").read_text())["models"]["student"]["tasks"]


def test_a_teacher_of_questions_is_trained_and_measured_by_what_it_writes(taught):
    model = load_model(taught / "student")
    assert type(model).__name__ == "BlipForQuestionAnswering"
    assert model.config.text_config.num_attention_heads == 8
    assert scores(taught)["vqa"]["samples"] == 8
    assert 0 <= scores(taught)["vqa"]["accuracy"] <= 1
    rows = [json.loads(line) for line in (taught / "history.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "terms" in row]
    assert {name for row in steps for name in row["terms"]} == {
        *("answer", "phrases", "supervised_attention", "tokens"),
    }


@pytest.mark.parametrize("heads", [2, 3])
def test_a_student_of_fewer_heads_is_taught_by_the_answers_alone(taught, tmp_path, heads):
    given = [
        f"teacher.model={taught / 'student'}",
        *(f"student.overrides.{part}.num_attention_heads={heads}" for part in ("vision_config", "text_config")),
        *("train.steps=2", "train.warmup_steps=0"),
    ]
    distill("kd-blip-vqa", tmp_path / "run", overrides=[*SMALL, *given])
    student = load_model(tmp_path / "run" / "student")
    assert student.config.vision_config.num_attention_heads == heads
    assert student.text_decoder.bert.encoder.layer[0].crossattention.self.num_attention_heads == heads
    assert len(student.vision_model.encoder.layers) == 2
    assert scores(tmp_path / "run")["vqa"]["samples"] == 8
    fidelity = json.loads((tmp_path / "run" / "metrics.json").read_text())["models"]["student"]["fidelity"]["vqa"]
    assert fidelity["samples"] >= 16  # tokens: every answer has a word and an end
    assert 0 <= fidelity["agreement"] <= 1
    assert fidelity["kl"] > 0
    attention = json.loads((tmp_path / "run" / "attention.json").read_text())
    assert attention["notes"] == []
    assert {(pair["name"], pair["queries"], pair["keys"]) for pair in attention["pairs"]} == {
        ("image_encoder", "picture", "picture"),
        *(("text_encoder", "words", "words"), ("text_encoder", "words", "picture")),
        ("text_decoder", "words", "words"),  # of the answer and, across, of the question
    }
    assert all(len(row) == heads for pair in attention["pairs"] for row in pair["similarity"])


def test_captions_start_with_the_eyes_of_the_teacher_of_questions(taught):
    started = plan("teach-blip-caption", [*SMALL, *SIZES, *STEPS, f"student.start={taught / 'student'}"])
    plain = plan("teach-blip-caption", [*SMALL, *SIZES, *STEPS])
    assert [stage["objectives"][0]["name"] for stage in started] == ["tokens", "caption"]
    assert started[0]["objectives"][0]["start"] != plain[0]["objectives"][0]["start"]
