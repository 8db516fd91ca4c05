import pytest

from potstill.run import distill, plan
from potstill.run.planning import imbalance


def row(role, weight, start):
    return {"role": role, "weight": weight, "start": start}


def test_the_plan_says_what_every_term_is_worth_at_the_start(tiny_run):
    (made,) = plan("optima-scenes", tiny_run())
    assert all(r["start"] > 0 for r in made["objectives"])


def test_hidden_terms_heavier_than_all_others_together_are_said():
    rows = [row("prediction", 1.0, 2.0), row("task", 1.0, 1.0), row("hidden", 0.1, 40.0), row("hidden", 0.1, 20.0)]
    assert imbalance({"objectives": rows}).startswith("the terms on hidden states begin 2.0 times as heavy")
    assert "0.17 times their weight" in imbalance({"objectives": rows})


@pytest.mark.parametrize(
    "rows",
    [
        [row("prediction", 1.0, 2.0), row("hidden", 0.01, 40.0)],
        [row("prediction", 1.0, 2.0)],
        [row("hidden", 1.0, 40.0)],  # nothing else is wanted
    ],
)
def test_other_runs_are_not_warned(rows):
    assert imbalance({"objectives": rows}) is None


def test_a_run_passes_the_warning_on(tiny_run, tmp_path):
    events = []
    heavy = tiny_run("objectives[4].weight=50.0", "train.steps=3", "policy.round_steps=3", "evaluate.samples=8")
    distill("optima-scenes", tmp_path / "run", overrides=heavy, progress=events.append)
    assert any("as heavy as all others" in e["text"] for e in events if e["event"] == "note")
