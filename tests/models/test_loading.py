import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from potstill.errors import InputError, IntegrityError
from potstill.models.loading import load_pretrained


@pytest.fixture
def saved(tiny, tmp_path):
    model, _ = tiny("bert-mlm")
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


def test_a_saved_model_is_loaded_whole_in_eval_mode(saved):
    model, folder = saved
    loaded = load_pretrained(folder)
    assert type(loaded) is type(model)
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_a_class_of_potstill_is_found_by_its_name(tiny, tmp_path):
    model, batch = tiny("coca")
    model.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path)
    assert type(loaded).__name__ == "CocaModel"
    with torch.no_grad():
        assert torch.equal(model(**batch).caption_logits, loaded(**batch).caption_logits)


def test_dtype_and_class_can_be_chosen(saved):
    loaded = load_pretrained(saved[1], model_class="BertForMaskedLM", dtype=torch.float16)
    assert {p.dtype for p in loaded.parameters()} == {torch.float16}


def test_pickled_weights_are_refused_by_name(saved):
    model, folder = saved
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(IntegrityError, match=r"no safetensors weights but pickled ones \(pytorch_model.bin\).*refused"):
        load_pretrained(folder, where="student.model")


def test_damaged_weights_are_refused(saved):
    weights = saved[1] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match=r"teacher: the weights of .* are damaged"):
        load_pretrained(saved[1], where="teacher")


def test_missing_tensors_are_refused_instead_of_being_random(saved):
    weights = saved[1] / "model.safetensors"
    tensors = load_file(weights)
    del tensors["bert.encoder.layer.1.output.dense.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(
        IntegrityError, match=r"lack 1 tensors of BertForMaskedLM, the first is bert\.encoder\.layer\.1"
    ):
        load_pretrained(saved[1])


def test_tensors_of_another_shape_are_refused(saved):
    config = json.loads((saved[1] / "config.json").read_text())
    (saved[1] / "config.json").write_text(json.dumps({**config, "hidden_size": 8}))
    with pytest.raises(IntegrityError, match="do not fit BertForMaskedLM"):
        load_pretrained(saved[1])


def test_code_that_comes_with_a_model_is_refused(saved):
    config = json.loads((saved[1] / "config.json").read_text())
    config |= {"architectures": ["Homemade"], "auto_map": {"AutoModel": "code.Homemade"}}
    (saved[1] / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r'"Homemade".*not in transformers.*code that comes with the model'):
        load_pretrained(saved[1])


def test_absent_folders_and_configurations_are_named(tmp_path):
    with pytest.raises(InputError, match="student: there is no folder"):
        load_pretrained(tmp_path / "gone", where="student")
    with pytest.raises(IntegrityError, match=r"has no config\.json"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(IntegrityError, match="has no safetensors weights"):
        load_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="names no model class"):
        load_pretrained(tmp_path)
