"""Runs whose logits are never whole: the same curve, a plan that says so, and reasons where they stay whole."""

import copy
import json

import pytest
import torch

import tiny_texts
from potstill.errors import RecipeError
from potstill.losses.fused import LazyLogits
from potstill.models.output_head import find_output_head
from potstill.recipe import load_recipe
from potstill.run import distill, plan
from potstill.run.prepare import prepare
from tiny_writers import V, llama

TERMS = [
    {"loss": "kd_kl", "name": "answer", "on": "logits", "labels": "labels", "shift": True, "temperature": 2.0},
    {"loss": "cross_entropy", "name": "text", "on": "logits", "labels": "labels", "shift": True, "weight": 0.3},
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for i, name in enumerate(("teacher", "student")):
        llama(i).save_pretrained(folder / name)
    return folder


def recipe(models, objectives=TERMS, **train):
    settings = {"steps": 3, "batch_size": 4, "learning_rate": 0.01, "log_every": 1, "checkpoint_every": 100}
    return {
        "version": 1,
        "teacher": {"model": str(models / "teacher")},
        "student": {"builder": "pretrained", "model": str(models / "student")},
        "data": {"source": "scenes"},
        "objectives": objectives,
        "train": {**settings, **train},
        "evaluate": {"samples": 8, "batch_size": 4, "attention": False, "shown": 0},
    }


def logits_of(models, objectives=TERMS, **train):
    return plan(recipe(models, objectives, **train), source=tiny_texts.source())[0]["logits"]


def run(models, folder, objectives=TERMS, **train):
    done = distill(recipe(models, objectives, **train), folder, source=tiny_texts.source())
    steps = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return done, [step for step in steps if step["event"] == "step"]


@pytest.mark.parametrize(
    "train", [{}, {"accumulation": 2}, {"gradient_checkpointing": True}, {"precision": "bf16"}], ids=str
)
def test_a_run_has_the_same_curve_with_and_without_whole_logits(models, tmp_path, train):
    whole, expected = run(models, tmp_path / "whole", logits_budget_mb=0, **train)
    fused, found = run(models, tmp_path / "fused", logits_budget_mb=None, **train)
    rough = "precision" in train
    tolerance = {"rel": 0.02, "abs": 2e-3} if rough else {"rel": 1e-4, "abs": 1e-6}
    assert len(found) == 3
    for one, other in zip(expected, found, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], **tolerance)
        for name in ("answer", "text"):
            assert other["terms"][name]["value"] == pytest.approx(one["terms"][name]["value"], **tolerance)
    if not rough:  # Adam's first steps are as long for a gradient that is all rounding
        for a, b in zip(whole.student.parameters(), fused.student.parameters(), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4)
    assert json.loads((tmp_path / "fused" / "plan.json").read_text())["logits"]["fused"]
    assert set(fused.metrics["models"]["student"]) == set(whole.metrics["models"]["student"])


OWN = {
    "ddk": ([{"loss": "ddk", "name": "text", "on": "logits", "labels": "labels", "gamma": 0.7}], {}),
    "minillm": (
        [
            {"loss": "minillm", "name": "own", "on": "logits"},
            {"loss": "cross_entropy", "name": "text", "on": "logits", "labels": "data_labels", "shift": True},
        ],
        {"rollout": {"lmbda": 0.5, "per": "row", "max_new_tokens": 4, "alpha": 0.2}},
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_objectives_of_several_terms_are_the_same_with_and_without_whole_logits(models, tmp_path, name):
    objectives, more = OWN[name]
    curves = []
    for budget in (0, None):
        settings = recipe(models, objectives, logits_budget_mb=budget, steps=4) | more
        distill(settings, tmp_path / str(budget), source=tiny_texts.source())
        assert json.loads((tmp_path / str(budget) / "plan.json").read_text())["logits"]["fused"] is (budget is None)
        rows = [json.loads(line) for line in (tmp_path / str(budget) / "history.jsonl").read_text().splitlines()]
        curves.append([row for row in rows if row["event"] == "step"])
    for one, other in zip(*curves, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4, abs=1e-5)
        assert other["terms"].keys() == one["terms"].keys()
        for term, row in one["terms"].items():
            assert other["terms"][term]["value"] == pytest.approx(row["value"], rel=1e-4, abs=1e-5)
            assert other["terms"][term].get("notes", {}) == pytest.approx(row.get("notes", {}), rel=1e-4)


def test_the_plan_says_what_was_decided_and_from_which_numbers(models):
    always = logits_of(models, logits_budget_mb=None)
    assert always == {
        "fused": True, "why": "train.logits_budget_mb is null", "tokens": 20, "vocabulary": V, "mib": 0.0,
        "teachers": {"teacher": None},
    }  # fmt: skip
    usual = logits_of(models)
    assert not usual["fused"]
    assert usual["why"] == "20 tokens x 12 words take 0.0 MiB with their copies, within train.logits_budget_mb"
    assert logits_of(models, logits_budget_mb=0) == {"fused": False, "why": "train.logits_budget_mb is 0"}


def test_more_than_the_budget_is_fused(models):
    big = logits_of(models, batch_size=32, logits_budget_mb=1)
    assert not big["fused"]
    wide = {"teacher": llama(0, vocab=3000), "student": llama(1, vocab=3000)}
    for name, model in wide.items():
        model.save_pretrained(models / "wide" / name)
    found = logits_of(models / "wide", batch_size=32, logits_budget_mb=1)
    assert found["fused"]
    assert found["why"] == "160 tokens x 3,000 words take 16.5 MiB with their copies, more than train.logits_budget_mb"


@pytest.mark.parametrize(
    ("objectives", "why"),
    [
        ([TERMS[0], {"loss": "pld", "on": "logits", "labels": "labels", "shift": True}], "reads whole logits"),
        ([{"loss": "dist_loss", "on": "logits"}], "no objective can compute its loss some rows at a time"),
        ([TERMS[1], {"loss": "dist_loss", "name": "rows", "on": "logits"}], 'the objective "rows" reads whole logits'),
        ([TERMS[1], {"loss": "model_loss"}], 'LlamaForCausalLM is given "labels"'),
        ([TERMS[0], {**TERMS[1], "name": "tapped", "on": "lm_head@output"}], '"lm_head", where logits are made, is ta'),
    ],
)  # fmt: skip
def test_the_plan_says_who_reads_whole_logits(models, objectives, why):
    found = logits_of(models, objectives, logits_budget_mb=None)
    assert not found["fused"]
    assert why in found["why"]


def test_a_teacher_whose_logits_are_read_whole_keeps_its_head(models, tmp_path):
    terms = [TERMS[0], TERMS[1]]
    built = prepare(load_recipe(recipe(models, terms, logits_budget_mb=None)), tmp_path, source=tiny_texts.source())
    assert isinstance(built.trainer.signals(batch())["teacher"].outputs["logits"], LazyLogits)
    teacher = built.trainer.teacher
    own = copy.copy(teacher.model.lm_head.weight)
    teacher.head = None
    plain = built.trainer.model(batch(), built.trainer.signals(batch()))
    teacher.head = find_output_head(teacher.model)
    lazy = built.trainer.model(batch(), built.trainer.signals(batch()))
    torch.testing.assert_close(lazy.loss, plain.loss)
    assert torch.equal(own, teacher.model.lm_head.weight)
    built.close()


def batch():
    return tiny_texts.collate([tiny_texts.Texts()[i] for i in range(4)])


def test_labels_beyond_the_vocabulary_are_refused_in_the_words_of_the_plain_run(models, tmp_path):
    built = prepare(load_recipe(recipe(models, logits_budget_mb=None)), tmp_path, source=tiny_texts.source())
    wrong = batch()
    wrong["labels"][0, 3] = V
    with pytest.raises(RecipeError, match=r"labels that are no class; expected 0 to 11; got 12"):
        built.trainer.model(wrong, built.trainer.signals(wrong))
    built.close()


def test_one_term_by_itself_is_what_the_run_adds_up(models, tmp_path):
    built = prepare(load_recipe(recipe(models, logits_budget_mb=None)), tmp_path, source=tiny_texts.source())
    module, signals = built.trainer.model, built.trainer.signals(batch())
    totals = module(batch(), signals).totals
    for objective in module.objectives:
        torch.testing.assert_close(module.total_of(objective, batch(), signals).detach(), totals[objective.name])
    built.close()
