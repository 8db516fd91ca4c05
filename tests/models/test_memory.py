"""How much memory a model takes, by its files alone."""

import pytest
import torch

from potstill.errors import RecipeError
from potstill.models import memory
from potstill.models.load import hash_weights, load_model, load_skeleton, packaged_models, weight_files


def test_the_bytes_of_weights_are_those_of_the_loaded_model():
    files = weight_files("digits-cnn")
    model = load_model("digits-cnn")
    held = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert memory.weights_bytes(files) == held
    assert held / 2 <= memory.weights_bytes(files, torch.bfloat16) < 0.51 * held  # counters of batches stay integers


def test_other_files_count_as_they_are(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 1234)
    assert memory.weights_bytes([tmp_path / "pytorch_model.bin"]) == 1234


def test_this_machine_tells_its_free_memory():
    assert memory.free_memory() > 1 << 20


def test_a_model_larger_than_memory_is_refused_before_a_weight_is_read(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 10)
    with pytest.raises(RecipeError, match="larger than the memory") as caught:
        load_model("digits-cnn", where="teachers.large.model")
    assert caught.value.where == "teachers.large.model"
    assert "potstill cache build" in caught.value.hint
    monkeypatch.setattr(memory, "free_memory", lambda: None)  # a system that does not tell
    load_model("digits-cnn")


@pytest.mark.parametrize("name", packaged_models())
def test_a_skeleton_has_the_modules_of_its_model_and_no_weight(name):
    skeleton, model = load_skeleton(name), load_model(name)
    assert [path for path, _ in skeleton.named_modules()] == [path for path, _ in model.named_modules()]
    assert all(p.is_meta for p in skeleton.parameters())
    assert {n: p.shape for n, p in skeleton.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


def test_the_hash_of_weights_changes_with_a_bit(tmp_path):
    (path,) = weight_files("digits-cnn")
    copy = tmp_path / path.name
    data = bytearray(path.read_bytes())
    copy.write_bytes(data)
    assert hash_weights([copy]) == hash_weights([path])
    data[-1] ^= 1
    copy.write_bytes(data)
    assert hash_weights([copy]) != hash_weights([path])
    assert hash_weights([copy, path]) != hash_weights([copy])
