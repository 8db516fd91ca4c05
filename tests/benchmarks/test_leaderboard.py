"""The leaderboard's script asks for the comparison and keeps what comes out."""

import csv
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def test_the_script_writes_runs_and_summary_with_their_origin(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(TESTS.parent / "benchmarks"))
    monkeypatch.syspath_prepend(str(TESTS / "systems" / "compare"))
    import leaderboard
    from toy_recipes import toy_recipe

    from potstill.recipe import dump_recipe, load_recipe
    from potstill.systems.compare.runner import Job

    real, script = Job.command, str(TESTS / "systems" / "compare" / "fake_distill.py")
    monkeypatch.setattr(Job, "command", lambda job: [sys.executable, script, *real(job)[3:]])
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(dump_recipe(load_recipe(toy_recipe())), encoding="utf-8")
    words = ["--tasks", recipe, "--methods", "kd_kl,dkd", "--budget", "steps=4", "--seeds", 2, "--jobs", 2]
    words += ["--folder", tmp_path / "runs", "--out", tmp_path / "toy_runs.csv"]
    monkeypatch.setattr(sys, "argv", ["leaderboard.py", *map(str, words)])
    leaderboard.main()
    with (tmp_path / "toy_runs.csv").open(encoding="utf-8") as file:
        runs = list(csv.DictReader(file))
    assert [(row["method"], row["seed"]) for row in runs] == [
        ("kd_kl", "0"),
        ("dkd", "0"),
        ("kd_kl", "1"),
        ("dkd", "1"),
    ]
    assert all(row["machine"] and row["date"] and row["commit"] for row in runs)
    with (tmp_path / "toy.csv").open(encoding="utf-8") as file:
        summary = [row for row in csv.DictReader(file) if row["measure"] == "score"]
    assert [row["method"] for row in summary] == ["dkd", "kd_kl"]
    assert float(summary[0]["difference"]) == pytest.approx(0.03)
    assert all(row["machine"] and row["date"] and row["commit"] for row in summary)
    assert str(tmp_path / "toy.csv") in capsys.readouterr().out


def test_every_method_of_a_group_goes_with_its_tasks(monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS.parent / "benchmarks"))
    from leaderboard import GROUPS

    from potstill.recipe import load_recipe
    from potstill.systems.compare.methods import apply_method, find_method

    for group in GROUPS.values():
        for task in group.tasks:
            base = load_recipe(task, list(group.overrides))
            recipes = [apply_method(find_method(method), base) for method in group.methods_for(task)]
            assert len({str(recipe) for recipe in recipes}) == len(recipes)


def test_rows_of_other_tasks_stay(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS.parent / "benchmarks"))
    from leaderboard import replace

    path = tmp_path / "runs.csv"
    replace(path, [{"recipe": "a", "budget": "steps-4", "score": 1}, {"recipe": "b", "budget": "steps-4", "score": 2}])
    replace(path, [{"recipe": "b", "budget": "steps-4", "score": 3, "score.novel": 4}])
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["recipe"], row["score"], row["score.novel"]) for row in rows] == [("a", "1", ""), ("b", "3", "4")]
