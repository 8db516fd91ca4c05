"""The recipes of DAC-KL and DDK, with a tiny teacher in place of the real one, on real texts."""

import json

import pytest
import torch
from safetensors.torch import load_file

from potstill.errors import InputError
from potstill.run import distill, plan
from text_models import save_pair

SMALL = [
    *("student.layers=1", "data.max_tokens=320", "data.size=48", "train.batch_size=2", "train.log_every=1"),
    *("train.warmup_steps=0", "train.checkpoint_every=2", "evaluate.samples=4", "evaluate.batch_size=2"),
    "evaluate.shown=0",
]
DAC = ["data.written=2", "rollout.max_new_tokens=6", "objectives[1].M=4", "objectives[1].hidden=4"]
DDK = ["data.written=2", "selection.interval=2", "selection.samples=2"]
CASES = {"dac-kl-smollm2": DAC, "ddk-smollm2": DDK}


def small(folder, recipe, steps=4):
    return [f"teacher.model={save_pair(folder / 'teacher')}", *SMALL, f"train.steps={steps}", *CASES[recipe]]


def events(folder, kind):
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == kind]


class CrashError(Exception):
    pass


def crash(event):
    if event["event"] == "step" and event["step"] == 3:
        raise CrashError


@pytest.mark.parametrize("recipe", CASES)
def test_a_recipe_runs_and_goes_on_exactly_where_it_was_stopped(tmp_path, recipe):
    overrides = small(tmp_path, recipe)
    distill(recipe, tmp_path / "straight", overrides=overrides)
    with pytest.raises(CrashError):
        distill(recipe, tmp_path / "stopped", overrides=overrides, progress=crash)
    distill(recipe, tmp_path / "stopped", overrides=overrides, resume=True)
    ends = [load_file(tmp_path / name / "student" / "model.safetensors") for name in ("straight", "stopped")]
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
    steps = events(tmp_path / "straight", "step")
    assert len(steps) == 4
    if recipe == "ddk-smollm2":
        chosen = events(tmp_path / "straight", "selection")
        assert len({row["weight.numerics"] for row in chosen}) == 2
        assert chosen == events(tmp_path / "stopped", "selection")
    else:
        assert {"text", "band", "phrases"} <= {name for step in steps for name in step["terms"]}
        assert all(0.5 < step["terms"]["band"]["notes"]["coverage"] <= 1 for step in steps)
        assert all(step["terms"]["phrases"]["value"] > 0 for step in steps)


def test_the_plan_says_what_they_do(tmp_path):
    dac, ddk = (plan(recipe, small(tmp_path / recipe, recipe))[0] for recipe in CASES)
    assert [row["loss"] for row in dac["objectives"]] == ["cross_entropy", "dac_kl", "span_correlation"]
    assert {row["name"]: row["parameters"] for row in dac["parts"]}["band"] > 0
    assert dac["rollout"]["corrections"] == 1
    assert ddk["selection"]["interval"] == 2


def test_spans_are_needed_and_said_to_be_missing(tmp_path):
    overrides = [*small(tmp_path, "dac-kl-smollm2"), "data.spans=false"]
    with pytest.raises(InputError, match="span_ids"):
        plan("dac-kl-smollm2", overrides)


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("objectives[1].lower=0.5", r"objectives\[1\].*upper"),
        ("objectives[1].coverage=0", r"objectives\[1\].*coverage"),
        ("objectives[1].sharpness=0", r"objectives\[1\].*sharpness"),
        ("objectives[1].M=0", r"objectives\[1\]"),
        ("objectives[2].temperature=0", r"objectives\[2\].*temperature"),
        ("rollout.corrections=-1", r"rollout\.corrections"),
        ("rollout.alpha=0.5", r"rollout\.alpha"),
    ],
)
def test_options_out_of_range_are_refused_with_their_place(tmp_path, override, place):
    with pytest.raises(InputError, match=place):
        plan("dac-kl-smollm2", [*small(tmp_path, "dac-kl-smollm2"), override])


@pytest.mark.parametrize("recipe", ["dac-kl-texts", "ddk-texts"])
def test_the_shipped_teacher_of_texts_teaches_by_them(tmp_path, recipe):
    more = ["selection.interval=1", "selection.samples=1"] if recipe == "ddk-texts" else ["rollout.max_new_tokens=4"]
    overrides = ["train.steps=2", "train.batch_size=2", "train.log_every=1", "train.warmup_steps=0", "data.size=64"]
    overrides += ["data.written=1", "evaluate.samples=2", "evaluate.batch_size=2", "evaluate.shown=0", *more]
    distill(recipe, tmp_path / "run", overrides=overrides)
    assert len(events(tmp_path / "run", "step")) == 2
    assert len(events(tmp_path / "run", "selection")) == (2 if recipe == "ddk-texts" else 0)
