"""Tuning: the same trials for all, the recipe as it is first, and the same choices after a kill."""

import csv
import json
import sys

import pytest
from toy_recipes import toy_recipe

from potstill.errors import InputError
from potstill.objectives import OBJECTIVES
from potstill.recipe import load_recipe
from potstill.run.check import usable_losses
from potstill.systems.compare import compare
from potstill.systems.compare.spaces import SPACES, default_of, space_of, with_choice

optuna = pytest.importorskip("optuna")


@pytest.fixture
def ask(toy, tmp_path, fake_runs):
    def run(**changes):
        given = {"budget": "steps=4", "seeds": 1, "jobs": 2, "trials": 3, "out": tmp_path / "out", **changes}
        return compare([toy()], ["kd_kl", "labels"], **given)

    return run


def test_the_space_is_around_the_recipe():
    space = space_of(load_recipe(toy_recipe(train={"learning_rate": 0.01})))
    assert set(space) == {"learning_rate", "kd_kl.temperature", "kd_kl.weight"}
    rate, heat = space["learning_rate"], space["kd_kl.temperature"]
    assert (rate.low, rate.start, rate.high) == pytest.approx((0.01 / 3, 0.01, 0.03))
    assert (heat.low, heat.start, heat.high) == (1.0, 4.0, 8.0)


def test_a_value_beyond_the_table_widens_the_space():
    rows = [{"loss": "kd_kl", "on": "logits", "temperature": 20.0}]
    space = space_of(load_recipe(toy_recipe(objectives=rows)))
    assert set(space) == {"learning_rate", "kd_kl.temperature"}  # one term alone has no weight to choose
    assert space["kd_kl.temperature"].high == 20.0


def test_the_start_is_the_recipe_as_it_is():
    recipe = load_recipe(toy_recipe())
    assert with_choice(recipe, {name: one.start for name, one in space_of(recipe).items()}) == recipe


def test_a_choice_goes_into_the_recipe():
    recipe = load_recipe(toy_recipe())
    chosen = with_choice(recipe, {"learning_rate": 0.5, "kd_kl.weight": 2.0, "kd_kl.temperature": 3.0})
    assert chosen.train.learning_rate == 0.5
    assert chosen.objectives[0].weight == 4.0
    assert chosen.objectives[0].options == {"temperature": 3.0}
    assert chosen.objectives[1] == recipe.objectives[1]


@pytest.mark.parametrize("loss", sorted(SPACES.keys() & {*usable_losses(), *OBJECTIVES}))
def test_options_of_the_table_are_numbers_of_their_losses(loss):
    for option, (low, high) in SPACES[loss].items():
        assert 0 < low < high
        assert default_of(loss, option) > 0


def test_every_method_gets_as_many_trials_and_the_best_is_used(ask, tmp_path):
    done = ask()
    state = json.loads((tmp_path / "out" / "compare.json").read_text())
    for method in ("kd_kl", "labels"):
        folder = tmp_path / "out" / "trials" / "toy" / method / "steps-4"
        trials = json.loads((folder / "trials.json").read_text())
        assert len(trials) == 3
        assert trials[0]["choice"]["learning_rate"] == 1e-3  # the recipe's
        best = max(trials, key=lambda one: one["score"])
        assert state["tuned"]["toy"][method]["steps-4"] == best
        text = (tmp_path / "out" / "recipes" / "toy" / method / "steps-4.yaml").read_text()
        assert (
            load_recipe(tmp_path / "out" / "recipes" / "toy" / method / "steps-4.yaml").train.learning_rate
            == (best["choice"]["learning_rate"])
        ), text
        trial = load_recipe(folder / "trial-1.yaml")
        assert (trial.seed, trial.evaluate.split, trial.evaluate.splits) == (0, "validation", [])
    with (done.folder / "runs.csv").open() as file:
        for row in csv.DictReader(file):
            assert json.loads(row["tuned"]) == state["tuned"]["toy"][row["method"]]["steps-4"]["choice"]


def test_a_killed_tuning_chooses_what_it_would_have_chosen(ask, tmp_path):
    def stop(event):
        if event["event"] == "begun" and "trial 1" in event["job"]:
            raise KeyboardInterrupt

    ask(out=tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        ask(progress=stop, jobs=1)
    ask()
    for method in ("kd_kl", "labels"):
        name = f"trials/toy/{method}/steps-4/trials.json"
        assert (tmp_path / "out" / name).read_text() == (tmp_path / "straight" / name).read_text()
        first = tmp_path / "out" / "trials" / "toy" / method / "steps-4" / "trial-0" / "calls"
        assert len(first.read_text().splitlines()) == 1


def test_a_method_whose_trials_all_fail_is_told_and_the_others_go_on(toy, tmp_path, fake_runs):
    done = compare([toy()], ["reverse_kl", "kd_kl"], budget="steps=4", seeds=1, jobs=2, trials=2, out=tmp_path / "out")
    assert done.failures["toy, reverse_kl, steps-4, seed 0"] == "no trial of this method succeeded"
    assert [row["method"] for row in done.rows] == ["kd_kl"]


def test_without_optuna_the_extra_is_named(ask, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r'--trials: needs optuna.*pip install "potstill\[tune\]"'):
        ask()
    assert not (tmp_path / "out").exists()
