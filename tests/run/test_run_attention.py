"""Attention of teacher and student at the end of a run: which maps, the setting, and what cannot be read."""

import json

import pytest

from potstill.report import build_report
from potstill.run import distill

SHORT = ("train.steps=2", "train.checkpoint_every=2", "evaluate.samples=16", "evaluate.shown=4")
AMAD = (
    "objectives=[{loss: kd_kl, name: vqa, on: task_logits.vqa, labels: vqa_labels}, "
    "{loss: amad_loss, name: maps, tau: 0.1}]"
)


def attention(folder):
    return json.loads((folder / "attention.json").read_text())


@pytest.fixture(scope="module")
def plain(tmp_path_factory, coca_teacher):
    """A run of plain distillation, which compares no layers while it trains, with its overrides and events."""
    overrides = [
        *(f"teacher.model={coca_teacher}", "data.concepts=12", "student={builder: depth, layers: 1}"),
        *("train.batch_size=8", "train.warmup_steps=0", "train.threads=1", *SHORT),
    ]
    events = []
    folder = tmp_path_factory.mktemp("attention") / "run"
    distill("kd-scenes", folder, overrides=overrides, progress=events.append)
    return folder, overrides, events


def test_plain_distillation_compares_the_last_layers_of_every_module(plain):
    data = attention(plain[0])
    assert data["notes"] == []
    assert data["samples"] == 16
    assert [(entry["student"], entry["teacher"]) for entry in data["pairs"]] == [
        ("image_encoder.blocks.0@self_attention", "image_encoder.blocks.1@self_attention"),
        ("text_decoder.blocks.0@self_attention", "text_decoder.blocks.1@self_attention"),
        ("multimodal_decoder.blocks.0@self_attention", "multimodal_decoder.blocks.1@self_attention"),
        ("multimodal_decoder.blocks.0@cross_attention", "multimodal_decoder.blocks.1@cross_attention"),
    ]
    assert [(entry["queries"], entry["keys"]) for entry in data["pairs"]] == [
        *(("picture", "picture"), ("words", "words"), ("words", "words"), ("words", "picture"))
    ]
    assert [entry["unit"] for entry in data["distance"]] == ["patches", "words", "words"]
    assert all(0 < value < 8 for entry in data["distance"] for value in entry["student_heads"])
    assert {sample["task"] for sample in data["shown"]} == {"caption", "entailment", "nlvr2", "vqa"}
    assert (plain[0] / "attention.json").stat().st_size < 300_000


def test_the_page_shows_it_and_the_run_says_that_it_measures_it(plain):
    assert 'id="attention"' in (plain[0] / "report.html").read_text()
    assert {"event": "measure", "what": "attention"} in plain[2]


def test_an_objective_on_maps_decides_what_is_compared(tmp_path, tiny_run):
    run = distill("kd-scenes", tmp_path / "run", overrides=tiny_run(*SHORT, AMAD))
    data = attention(run.folder)
    names = [(entry["name"], entry["student"].split("@")[1], entry["tau"]) for entry in data["pairs"]]
    assert names == [
        *(("image_encoder", "self_attention", 0.1), ("text_decoder", "self_attention", 0.1)),
        *(("multimodal_decoder", "self_attention", 0.1), ("multimodal_decoder", "cross_attention", 0.1)),
    ]
    assert len(data["distance"]) == 3
    assert len(data["shown"]) == 4


def test_without_samples_in_the_report_there_are_none_in_its_attention(tmp_path, tiny_run):
    run = distill("kd-scenes", tmp_path / "run", overrides=tiny_run(*SHORT, "evaluate.shown=0"))
    data = attention(run.folder)
    assert data["shown"] == []
    assert len(data["pairs"]) == 4
    assert "Where both models look" not in run.report.read_text()
    assert "How alike the heads are" in run.report.read_text()


def test_switched_off_it_is_neither_written_nor_left_from_before(plain):
    folder, overrides, _ = plain
    kept, page = (folder / "attention.json").read_text(), (folder / "report.html").read_text()
    distill("kd-scenes", folder, overrides=[*overrides, "evaluate.attention=false"], resume=True)
    assert not (folder / "attention.json").exists()
    assert 'id="attention"' not in (folder / "report.html").read_text()
    (folder / "attention.json").write_text(kept)
    build_report(folder)
    assert 'id="attention"' in page


@pytest.mark.parametrize("error", [RuntimeError("not enough memory"), KeyError("maps"), ValueError("")])
def test_what_cannot_be_read_leaves_a_note_and_a_finished_run(plain, monkeypatch, error):
    folder, overrides, _ = plain

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("potstill.run.attention.compare_attention", fail)
    events = []
    distill("kd-scenes", folder, overrides=overrides, resume=True, progress=events.append)
    (note,) = attention(folder)["notes"]
    assert note.startswith("Attention maps could not be read (")
    assert str(error) in note
    assert any(event.get("text") == f"attention: {note}" for event in events)
    page = (folder / "report.html").read_text()
    assert "Attention maps could not be read" in page
    assert 'id="attention"' not in page


def test_a_run_without_a_teacher_has_none(tmp_path):
    small = ["data.concepts=12", "train.batch_size=8", "train.warmup_steps=0", "train.threads=1", *SHORT]
    one = ["stages=null", "objectives=[{loss: model_loss}]", "student.fields.image_layers=1", "train.steps=1"]
    run = distill("teach-scenes", tmp_path / "run", overrides=[*small, *one])
    assert not (run.folder / "attention.json").exists()
