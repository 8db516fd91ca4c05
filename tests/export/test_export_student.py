import errno
import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizerFast

from potstill.errors import InputError, IntegrityError
from potstill.export import export_student, verify_export
from potstill.export import student as exporting


def _bert(seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return BertModel(BertConfig(vocab_size=20, max_position_embeddings=8, **sizes))


class Plain(nn.Module):
    """A module of the user's own, with tied weights and a buffer."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, ids):
        return {"logits": self.head(self.embed(ids)) * self.scale}


BATCH = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]]), "labels": torch.zeros(2)}


def _leftovers(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_student_comes_back_bit_for_bit_with_card_and_nothing_else(tmp_path):
    model = _bert().train()
    folder = export_student(model, tmp_path / "runs" / "student", batch=BATCH, facts={"name": "Mine"})
    assert folder == tmp_path / "runs" / "student"
    assert model.training
    loaded = BertModel.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values()))
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(model.state_dict())
    assert "# Mine" in (folder / "README.md").read_text()
    assert "BertModel" in (folder / "README.md").read_text()
    assert _leftovers(tmp_path / "runs") == ["student"]


def test_an_export_can_be_read_by_whoever_may_read_a_new_folder(tmp_path):
    (tmp_path / "other").mkdir()
    folder = export_student(_bert(), tmp_path / "student")
    assert folder.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_half_precision_is_kept(tmp_path):
    folder = export_student(_bert().to(torch.bfloat16), tmp_path / "s", batch=BATCH)
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}


def test_a_processor_goes_with_the_model(tmp_path):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))
    folder = export_student(_bert(), tmp_path / "s", BertTokenizerFast(vocab_file=str(vocabulary)))
    assert (folder / "tokenizer_config.json").is_file()
    with pytest.raises(InputError, match="processor"):
        export_student(_bert(), tmp_path / "t", processor=object())
    assert not (tmp_path / "t").exists()


def test_a_plain_module_is_written_as_weights_and_the_name_of_its_class(tmp_path):
    torch.manual_seed(0)
    model = Plain()
    folder = export_student(model, tmp_path / "s", batch={"ids": torch.tensor([1, 2])})
    assert json.loads((folder / "config.json").read_text())["class"].endswith("Plain")
    assert len(load_file(folder / "model.safetensors")) == 2  # the tied weight once, and the buffer
    torch.manual_seed(1)
    other = Plain()
    load_model(other, str(folder / "model.safetensors"))
    ids = torch.tensor([0, 3])
    assert torch.equal(other(ids)["logits"], model(ids)["logits"])


def test_the_wrapped_student_is_refused_with_what_to_export_instead(tmp_path):
    wrapped = nn.Module()
    wrapped.student, wrapped.parts = _bert(), nn.ModuleDict()
    with pytest.raises(InputError, match=r"\.student"):
        export_student(wrapped, tmp_path / "s")
    parallel = nn.Module()
    parallel.module = _bert()
    with pytest.raises(InputError, match=r"\.module"):
        export_student(parallel, tmp_path / "s")
    with pytest.raises(InputError, match="no model"):
        export_student("student", tmp_path / "s")
    assert _leftovers(tmp_path) == []


def test_an_existing_folder_stays_unless_overwriting_is_asked_for(tmp_path):
    folder = export_student(_bert(0), tmp_path / "s")
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="overwrite=True"):
        export_student(_bert(1), folder)
    assert (folder / "model.safetensors").read_bytes() == before
    (folder / "old.txt").write_text("old")
    export_student(_bert(1), folder, overwrite=True)
    assert (folder / "model.safetensors").read_bytes() != before
    assert not (folder / "old.txt").exists()
    assert _leftovers(tmp_path) == ["s"]


def test_a_folder_that_holds_no_model_is_never_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not replaced"):
        export_student(_bert(), tmp_path / "home", overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="plain folder"):
        export_student(_bert(), tmp_path / "file", overwrite=True)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "s").mkdir()
    assert (export_student(_bert(), tmp_path / "s") / "config.json").is_file()


def test_a_weight_that_changes_on_the_way_is_noticed(tmp_path, monkeypatch):
    write = exporting._write

    def spoil(student, folder, processor):
        write(student, folder, processor)
        data = bytearray((folder / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (folder / "model.safetensors").write_bytes(data)

    monkeypatch.setattr(exporting, "_write", spoil)
    for model in (_bert(), Plain()):
        with pytest.raises(IntegrityError, match="changed on its way"):
            export_student(model, tmp_path / "s")
    assert _leftovers(tmp_path) == []


def test_a_model_that_computes_otherwise_after_loading_is_noticed(tmp_path):
    class Forgetful(BertModel):
        """Keeps part of what it computes outside of its weights."""

        def __init__(self, config):
            super().__init__(config)
            self.bonus = 0.0

        def forward(self, input_ids):
            return super().forward(input_ids).last_hidden_state + self.bonus

    model = Forgetful(_bert().config)
    export_student(model, tmp_path / "fine", batch=BATCH)
    model.bonus = 1.0
    with pytest.raises(IntegrityError, match=r'"output"'):
        export_student(model, tmp_path / "s", batch=BATCH)
    assert _leftovers(tmp_path) == ["fine"]


def test_a_foreign_tensor_in_the_file_is_noticed(tmp_path):
    from safetensors.torch import save_file

    model = _bert()
    folder = export_student(model, tmp_path / "s")
    path = folder / "model.safetensors"
    save_file({**load_file(path), "parts.projector.weight": torch.ones(1)}, path, metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match=r"parts\.projector\.weight"):
        verify_export(model, folder)


@pytest.mark.parametrize("model", [_bert(), Plain()], ids=["transformers", "plain"])
@pytest.mark.parametrize("place", ["save", "flush", "replace"])
def test_a_full_disk_leaves_nothing_behind_and_an_earlier_export_alone(tmp_path, monkeypatch, model, place):
    folder = export_student(model, tmp_path / "s")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if place == "save":
        monkeypatch.setattr(exporting, "_write", full)
    elif place == "flush":
        monkeypatch.setattr(os, "fsync", full)
    else:
        replace, count = os.replace, iter(range(9))
        # The earlier export is already aside when the new one fails to take its place.
        monkeypatch.setattr(os, "replace", lambda a, b: full() if next(count) == 1 else replace(a, b))
    with pytest.raises(IntegrityError, match="Free some disk space"):
        export_student(model, folder, overwrite=True)
    assert _leftovers(tmp_path) == ["s"]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_place_that_cannot_be_written_to_is_one_message(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(IntegrityError, match="could not be written"):
        export_student(_bert(), tmp_path / "file" / "s")


def test_a_vit_is_exported_under_the_names_old_readers_know(tiny, tmp_path):
    model, batch = tiny("vit")
    folder = export_student(model, tmp_path / "student", batch=batch)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert "vit.encoder.layer.0.attention.attention.query.weight" in list(file.keys())
    again = type(model).from_pretrained(folder)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_renamed_foreign_tensor_is_still_refused(tiny, tmp_path):
    model, _ = tiny("vit")
    folder = export_student(model, tmp_path / "student")
    path = folder / "model.safetensors"
    save_file({**load_file(path), "vit.encoder.layer.9.attention.attention.query.weight": torch.zeros(2)}, path)
    with pytest.raises(IntegrityError, match="not the student's"):
        verify_export(model, folder)
