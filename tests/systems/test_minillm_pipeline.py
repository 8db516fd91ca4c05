"""MiniLLM as a pipeline and as a recipe's sections."""

import json

import pytest
import torch

from potstill.errors import InputError
from potstill.run import distill
from potstill.systems import MiniLLMPipeline
from tiny_texts import source
from tiny_writers import llama

TRAIN = {"steps": 3, "batch_size": 4, "learning_rate": 0.01, "log_every": 1}


def test_the_student_learns_and_is_returned_bare(tmp_path):
    student, before = llama(0), llama(0).state_dict()
    trained = MiniLLMPipeline(student, llama(1), max_new_tokens=4).train(source(), train=TRAIN)
    assert type(trained) is type(student)
    assert not torch.equal(trained.lm_head.weight, before["lm_head.weight"])


def test_its_sections_are_the_papers():
    recipe = MiniLLMPipeline(llama(0), llama(1), text_weight=2.0, kd_ratio=0.25, alpha=0.3).recipe()
    weights = {row.get("name", row["loss"]): row.get("weight", 1.0) for row in recipe["objectives"]}
    assert weights == {"minillm": 1.0, "text": 1.5, "text_kd": 0.5}
    assert recipe["rollout"]["alpha"] == 0.3
    assert recipe["rollout"]["per"] == "row"


def test_a_share_outside_its_range_is_refused():
    with pytest.raises(InputError, match="kd_ratio"):
        MiniLLMPipeline(llama(0), llama(1), kd_ratio=1.5)


@pytest.fixture
def recipe(tmp_path):
    llama(1).save_pretrained(tmp_path / "teacher")
    llama(0).save_pretrained(tmp_path / "student")
    return {
        "version": 1,
        "teacher": {"model": str(tmp_path / "teacher")},
        "student": {"builder": "pretrained", "model": str(tmp_path / "student")},
        "objectives": [{"loss": "reverse_kl", "on": "logits", "labels": "labels", "shift": True}],
        "rollout": {"lmbda": 0.5, "max_new_tokens": 4},
        "train": {**TRAIN, "steps": 4, "checkpoint_every": 2},
        "evaluate": {"samples": 8, "batch_size": 4, "attention": False, "shown": 0},
    }


def test_a_recipe_has_the_student_write(recipe, tmp_path):
    distill(recipe, tmp_path / "run", source=source())
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["rollout"]["lmbda"] == 0.5
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-4" / "rollouts-0.pt").is_file()


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"rollout": {"lmbda": 2}}, "rollout.lmbda"),
        ({"rollout": {"max_new_tokens": 0}}, "rollout.max_new_tokens"),
        ({"rollout": {"reuse": 0.5}}, "rollout.buffer"),
        ({"rollout": {"max_new_tokens": 100}}, "max_new_tokens"),
        ({"rollout": None, "objectives": [{"loss": "minillm", "on": "logits"}]}, "rollout"),
    ],
)
def test_mistakes_are_told_at_the_door(recipe, tmp_path, change, where):
    with pytest.raises(InputError, match=where):
        distill({**recipe, **change}, tmp_path / "run", source=source())
    assert not (tmp_path / "run").exists()
