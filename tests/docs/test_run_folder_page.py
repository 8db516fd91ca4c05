"""What a run leaves behind and what the run-folder page says are the same, by name and key."""

import json
import re

import pytest
from documents import ROOT

PAGE = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")


def section(title):
    """The words in backticks in one section of the page."""
    text = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)[1]
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return set(re.findall(r"`([^`\n]+)`", text))


def read(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_every_file_of_a_run_is_described(finished_run):
    described = set(re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE))
    left = {path.name + ("/" if path.is_dir() else "") for path in finished_run.iterdir()}
    assert left <= described
    assert {"student/", "metrics.json", "history.jsonl", "report.html"} <= left


def test_every_file_of_a_checkpoint_is_described(finished_run):
    (newest,) = (finished_run / "checkpoints").glob("checkpoint-4")
    assert {path.name for path in newest.iterdir()} <= section("checkpoints/")
    (stage,) = (finished_run / "stages").iterdir()
    assert stage.name == "0-main"
    assert {path.name for path in stage.iterdir()} <= section("stages/")


def test_every_key_of_the_metrics_is_described(finished_run):
    words = section("metrics.json")
    metrics = read(finished_run, "metrics.json")
    assert set(metrics) == {"version", "split", "samples", "models"}
    assert set(metrics["models"]) == {"teacher", "student"}
    for model in metrics["models"].values():
        assert set(model) <= words
        assert set(model["cost"]) <= words
        for scores in (*model["tasks"].values(), *(model["fidelity"] or {}).values(), *(model["cka"] or ())):
            assert set(scores) <= words
    assert metrics["models"]["student"]["cka"]


@pytest.mark.parametrize("kind", ["step", "round"])
def test_every_key_of_the_history_is_described(finished_run, kind):
    lines = (finished_run / "history.jsonl").read_text(encoding="utf-8").splitlines()
    events = [event for event in map(json.loads, lines) if event["event"] == kind]
    assert len(events) == 2
    words = section("history.jsonl")
    for event in events:
        assert set(event) <= words
        for entry in (*event.get("terms", {}).values(), *event.get("posterior", {}).values()):
            assert set(entry) <= words


@pytest.mark.parametrize("name", ["plan.json", "environment.json", "progress.json"])
def test_every_key_of_the_other_files_is_described(finished_run, name):
    assert set(read(finished_run, name)) <= section(name)


def test_every_key_of_plan_rows_and_samples_is_described(finished_run):
    plan, words = read(finished_run, "plan.json"), section("plan.json")
    rows = [plan["teacher"], plan["student"], *plan["objectives"], *plan["parts"], *plan["modules"]]
    rows += [pair for module in plan["modules"] for pair in module["pairs"]]
    for row in rows:
        assert set(row) <= words
    for sample in read(finished_run, "samples.json"):
        assert set(sample) == {"task", "images", "text", "truth", "answers"} <= section("samples.json")


def test_every_key_of_the_attention_is_described(finished_run):
    attention, words = read(finished_run, "attention.json"), section("attention.json")
    assert set(attention) == {"version", "samples", "notes", "pairs", "distance", "shown"} <= words
    entries = [*attention["pairs"], *attention["distance"], *attention["shown"]]
    maps = [one for sample in attention["shown"] for one in sample["maps"]]
    rows = [row for one in maps for row in one["rows"]]
    assert {one["kind"] for one in maps} == {"picture", "words"} <= words
    for entry in (*entries, *maps, *rows):
        assert set(entry) <= words
