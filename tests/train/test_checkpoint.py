"""Complete or refused: what a checkpoint promises."""

import json
import os

import pytest
import torch
from torch import nn

from potstill.errors import IntegrityError
from potstill.train.checkpoint import (
    keep_newest,
    list_checkpoints,
    load_weights,
    newest_valid,
    save_weights,
    seal,
    verify,
)
from potstill.train.history import History


def make(folder, step):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "a.txt").write_text(f"step {step}")
    seal(path)
    return path


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_sealed_checkpoint_verifies(tmp_path):
    verify(make(tmp_path, 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "a.txt").write_text("step 9"), r"a\.txt: the file changed"),
        (lambda p: (p / "a.txt").unlink(), r"a\.txt: the file is missing"),
        (lambda p: (p / "manifest.json").unlink(), r"manifest\.json: the file is missing"),
        (lambda p: (p / "manifest.json").write_text("{"), r"manifest\.json: cannot be read as JSON"),
        (lambda p: (p / "manifest.json").write_text("[]"), r"manifest\.json: the manifest has no list"),
        (lambda p: (p / "manifest.json").write_text("[" * 9999), r"manifest\.json: cannot be read as JSON"),
        (lambda p: (p / "manifest.json").write_text('{"files": {"a.txt": 1}}'), r"a\.txt: the file changed"),
        (lambda p: (p / "manifest.json").write_text('{"files": {"a\\u0000": 1}}'), "holds no links"),
        (lambda p: (p / "manifest.json").write_text('{"files": {"/etc/passwd": 1}}'), "holds no links"),
        (lambda p: (p / "a.txt").write_text(""), r"a\.txt: the file changed"),
        (lambda p: flip(p / "a.txt"), r"a\.txt: the file changed"),
        (lambda p: ((p / "a.txt").unlink(), (p / "a.txt").mkdir()), r"a\.txt: the file is missing"),
        (lambda p: ((p / "a.txt").unlink(), (p / "a.txt").symlink_to("a.txt")), "holds no links"),
        (lambda p: ((p / "a.txt").unlink(), (p / "a.txt").symlink_to("nowhere")), "holds no links"),
        (lambda p: (p / "rng_state.pth").symlink_to("/dev/zero"), r"rng_state\.pth: a checkpoint holds no links"),
        (lambda p: (p / "more").symlink_to("/"), "more: a checkpoint holds no links"),
        (lambda p: (p / "optimizer.pt").write_text("x"), r"optimizer\.pt: the manifest does not list this file"),
        (lambda p: (p.rename(p.parent / "x"), p.symlink_to(p.parent / "x")), "holds no links and is none"),
    ],
)
def test_damage_is_refused_by_name(tmp_path, damage, message):
    path = make(tmp_path, 1)
    damage(path)
    with pytest.raises(IntegrityError, match=message):
        verify(path)


def test_a_manifest_cannot_point_outside_its_folder(tmp_path):
    path = make(tmp_path, 1)
    (tmp_path / "secret").write_text("x")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"bytes": 1, "sha256": "0" * 64}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match="no links"):
        verify(path)


def test_a_file_swapped_for_a_link_is_refused(tmp_path):
    path = make(tmp_path, 1)
    (path / "a.txt").rename(tmp_path / "a.txt")
    (path / "a.txt").symlink_to(tmp_path / "a.txt")
    with pytest.raises(IntegrityError, match="no links"):
        verify(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_refused_by_name(tmp_path):
    path = make(tmp_path, 1)
    (path / "a.txt").chmod(0)
    with pytest.raises(IntegrityError, match=r"a\.txt: cannot be read \(Permission denied\)"):
        verify(path)


def test_the_newest_valid_one_is_found_by_number_not_by_time(tmp_path):
    for step in (1000, 200, 30):
        make(tmp_path, step)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-30", "checkpoint-200", "checkpoint-1000"]
    (tmp_path / "checkpoint-1000" / "a.txt").write_text("")
    found, refused = newest_valid(tmp_path)
    assert found.name == "checkpoint-200"
    assert len(refused) == 1
    keep_newest(tmp_path, 1)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-1000"]


def test_a_damaged_checkpoint_of_later_steps_does_not_push_out_the_one_just_written(tmp_path):
    for step in (2, 4, 6):
        make(tmp_path, step)
    (tmp_path / "checkpoint-6" / "a.txt").write_text("")
    keep_newest(tmp_path, 1, written=tmp_path / "checkpoint-4")
    assert newest_valid(tmp_path)[0].name == "checkpoint-4"
    assert not (tmp_path / "checkpoint-2").exists()


def test_weights_come_back_with_shared_tensors_stored_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
            self.head.weight = self.embedding.weight

    first, second, parts = Tied(), Tied(), nn.ModuleDict({"p": nn.Linear(2, 2)})
    save_weights(tmp_path, first, parts)
    other = nn.ModuleDict({"p": nn.Linear(2, 2)})
    load_weights(tmp_path, second, other)
    assert torch.equal(first.head.weight, second.embedding.weight)
    assert second.head.weight is second.embedding.weight
    assert torch.equal(parts["p"].weight, other["p"].weight)
    assert (tmp_path / "student.safetensors").stat().st_size < 2 * 7 * 3 * 4 + 300


def test_history_drops_what_comes_after_the_checkpoint_and_a_torn_line(tmp_path):
    path = tmp_path / "history.jsonl"
    before = History(path, stage="a")
    before.add({"event": "step", "step": 9})
    now = History(path, stage="b")
    for step in (1, 2, 3):
        now.add({"event": "round", "step": step})
        now.add({"event": "step", "step": step})
    with open(path, "a") as file:
        file.write('{"event": "st')
    again = History(path, stage="b")
    again.rewind(2)
    kept = [(e["stage"], e["event"], e["step"]) for e in again.events]
    assert kept == [("a", "step", 9), ("b", "round", 1), ("b", "step", 1), ("b", "step", 2)]
    assert [json.loads(line) for line in path.read_text().splitlines()] == again.events


def test_history_with_a_damaged_line_inside_is_not_cut_in_silence(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"event": "step", "step": 1}\n[]\n{"event": "step", "step": 2}\n')
    with pytest.raises(IntegrityError, match=r"history\.jsonl, line 2: this line is no event.*Remove the line"):
        History(path).rewind(2)
    assert len(path.read_text().splitlines()) == 3


def test_history_keeps_names_with_any_line_separator(tmp_path):
    history = History(tmp_path / "history.jsonl")
    history.add({"event": "step", "step": 1, "arm": "a\u2028b\x85c"})
    history.add({"event": "step", "step": 2})
    history.rewind(2)
    assert [event["step"] for event in history.events] == [1, 2]


def test_history_survives_a_line_torn_within_a_character_and_odd_names(tmp_path):
    path = tmp_path / "history.jsonl"
    now = History(path)
    for step in (1, 2):
        now.add({"event": "step", "step": step, "arm": "bild\u2028größe"})  # str.splitlines would split at U+2028
    path.write_bytes(path.read_bytes()[: -len('ße"}\n'.encode()) + 1])
    again = History(path)
    again.rewind(2)
    assert again.events == [{"event": "step", "step": 1, "arm": "bild\u2028größe"}]
