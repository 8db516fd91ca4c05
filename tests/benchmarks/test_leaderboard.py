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
