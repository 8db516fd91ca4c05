"""The text-to-text teacher from its packaged recipe, made tiny, and students distilled from it."""

import json

import pytest
import torch
from safetensors.torch import load_file

from potstill.errors import RecipeError
from potstill.models.load import load_model
from potstill.run import distill, plan

FIELDS = "stem: conv, visual_layers: 1, d_model: 16, num_heads: 4, d_kv: 4, d_ff: 16, num_layers: 2, dropout_rate: 0.0"
SMALL = ("data.concepts=12", "train.batch_size=8", "train.log_every=1", "train.threads=1", "evaluate.samples=24")
TEACH = (
    f"student.fields={{{FIELDS}}}",
    *SMALL,
    "evaluate.shown=6",
    "stages[0].objectives[0].classes=12",
    *(f"stages[{i}].train.{field}" for i in range(3) for field in ("steps=2", "warmup_steps=0")),
    "stages[0].train.batch_size=8",
)
DISTIL = """
version: 1
name: from-vl-t5
teacher: {{model: {teacher}}}
student: {{builder: depth, layers: 1}}
data:
  source: scenes
  form: text_to_text
  tasks: [caption, vqa, translation]
  directions: [en-de, de-en, en-fr, fr-en]
objectives:
  - {{loss: kd_kl, on: logits, labels: labels}}
  - {{loss: hidden, weight: 0.01}}
policy: {{name: optima, round_steps: 2, probe_batches: 1, warmup_rounds: 1}}
train: {{steps: 4}}
evaluate: {{shown: 0, splits: [heldout_directions]}}
"""


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    out = tmp_path_factory.mktemp("taught") / "run"
    return distill("teach-vl-t5", out, overrides=TEACH).folder


def test_the_teacher_goes_through_its_stages_and_is_measured_on_what_it_writes(taught):
    lines = [json.loads(line) for line in (taught / "history.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["naming"] * 2 + ["pointing"] * 2 + ["tasks"] * 2
    assert set(lines[-1]["terms"]) == {"model_loss", "phrases", "find", "look"}
    scores = json.loads((taught / "metrics.json").read_text())["models"]["student"]
    assert {"accuracy", "kinds", "token_accuracy"} <= set(scores["tasks"]["vqa"])
    assert {"objects", "exact"} <= set(scores["tasks"]["caption"])
    assert {"names", "accuracy"} <= set(scores["tasks"]["translation"])
    assert set(scores["splits"]["heldout_directions"]["tasks"]["translation"]["kinds"]) == {"de-fr", "fr-de"}
    assert type(load_model(taught / "student")).__name__ == "VLT5ForConditionalGeneration"


def test_its_samples_show_prompts_and_written_answers(taught):
    shown = json.loads((taught / "samples.json").read_text())
    assert {s["task"] for s in shown} == {"caption", "vqa", "translation"}
    assert all(isinstance(s["answers"]["student"], str) and s["truth"] for s in shown)
    assert all(s["text"].startswith(("vqa:", "translate to")) for s in shown if s["task"] != "caption")


@pytest.mark.parametrize(
    "builder", ["depth, layers: 1", "width, width: 8", "config, overrides: {num_heads: 3, d_kv: 5}"]
)
def test_a_student_of_it_is_distilled_module_by_module(taught, tmp_path, builder):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(DISTIL.format(teacher=taught / "student").replace("depth, layers: 1", builder))
    out = distill(recipe, tmp_path / "run", overrides=[*SMALL, "train.checkpoint_every=2"])
    saved = json.loads((out.folder / "plan.json").read_text())
    names = ["image_encoder", "multimodal_encoder", "text_decoder"]
    assert [m["name"] for m in saved["modules"]] == names
    assert saved["modules"][1]["mask"] == "attention_mask+36"
    scores = json.loads((out.folder / "metrics.json").read_text())["models"]["student"]
    assert {"vqa", "caption", "translation", "main"} <= set(scores["fidelity"])
    assert scores["fidelity"]["vqa"]["samples"] > 0
    weights = load_file(out.folder / "student" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_a_split_in_languages_without_words_is_refused(taught):
    with pytest.raises(RecipeError, match=r"has no words of de, fr"):
        distill("teach-vl-t5", taught.parent / "other", overrides=[*TEACH, "data.directions=null", "data.tasks=[vqa]"])


def test_a_plan_says_form_and_directions():
    (first, *_) = plan("teach-vl-t5", TEACH)
    assert first["data"]["form"] == "text_to_text"
    assert plan("teach-vl-t5", TEACH)[-1]["data"]["directions"] == ["en-de", "en-fr", "de-en", "fr-en"]
