import contextlib
import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, BertModel

from potstill.errors import InputError, IntegrityError, PotstillError, RecipeError
from potstill.models import load as loading
from potstill.models.coca import CocaModel
from potstill.models.load import file_sha256, load_model, packaged_models, verify_manifest, write_manifest


@pytest.fixture
def coca_folder(tiny_model, tmp_path):
    """A tiny CoCa saved in half precision."""
    model = tiny_model()
    model.half().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def bert_folder(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(BertConfig(vocab_size=20, max_position_embeddings=8, num_labels=3, **sizes))
    model.save_pretrained(tmp_path / "bert", max_shard_size="8KB")
    return tmp_path / "bert"


@pytest.fixture
def shelf(coca_folder, tmp_path, monkeypatch):
    """A folder of packaged models with one in it, "tiny"."""
    monkeypatch.setattr(loading, "WEIGHTS", tmp_path / "shelf")
    shutil.copytree(coca_folder, tmp_path / "shelf" / "tiny")
    write_manifest(tmp_path / "shelf" / "tiny")
    return tmp_path / "shelf"


def _edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_half_precision_weights_arrive_in_full_precision_and_ready_to_use(coca_folder):
    model = load_model(coca_folder)
    assert isinstance(model, CocaModel)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    stored = load_file(coca_folder / "model.safetensors")
    assert torch.equal(model.logit_scale, stored["logit_scale"].float())
    assert torch.equal(model.image_encoder.positions, stored["image_encoder.positions"].float())


@pytest.mark.parametrize("dtype", ["bf16", "fp16", torch.float64])
def test_another_precision_is_taken_if_asked_for(coca_folder, dtype):
    wanted = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(dtype, dtype)
    assert next(load_model(coca_folder, dtype=dtype).parameters()).dtype is wanted


def test_an_unknown_precision_is_refused(coca_folder):
    with pytest.raises(RecipeError, match="fp32"):
        load_model(coca_folder, dtype="fp31")


def test_the_class_comes_from_the_config_also_for_shards_of_transformers_models(bert_folder):
    assert len(list(bert_folder.glob("*.safetensors"))) > 1
    model = load_model(str(bert_folder))
    assert type(model) is BertForSequenceClassification
    assert model.num_labels == 3


def test_loading_leaves_the_global_random_numbers_alone(coca_folder):
    state = torch.get_rng_state()
    load_model(coca_folder)
    assert torch.equal(state, torch.get_rng_state())


def test_a_packaged_name_is_found_checked_and_loaded(shelf):
    assert packaged_models() == {"tiny": shelf / "tiny"}
    assert isinstance(load_model("tiny"), CocaModel)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_changed_packaged_file_is_refused_with_both_hashes(shelf, name):
    path = shelf / "tiny" / name
    before = file_sha256(path)
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError) as caught:
        load_model("tiny")
    assert caught.value.where == str(path)
    assert before in caught.value.expected
    assert caught.value.got == file_sha256(path)


def test_a_missing_packaged_file_is_named(shelf):
    (shelf / "tiny" / "model.safetensors").unlink()
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        load_model("tiny")


def test_a_file_the_manifest_does_not_vouch_for_is_refused(shelf):
    (shelf / "tiny" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(IntegrityError, match="does not list"):
        load_model("tiny")


@pytest.mark.parametrize(
    "content", ['{"files": {}}', "[]", "{", '{"files": {"../x": "00"}}', '{"files": {"config.json": 3}}']
)
def test_a_damaged_manifest_is_refused(shelf, content):
    (shelf / "tiny" / "MANIFEST.json").write_text(content)
    with pytest.raises((IntegrityError, InputError)):
        verify_manifest(shelf / "tiny")


def test_the_expected_hash_is_compared(coca_folder, bert_folder):
    load_model(coca_folder, sha256=file_sha256(coca_folder / "model.safetensors").upper())
    for folder in (coca_folder, bert_folder):
        with pytest.raises(IntegrityError) as caught:
            load_model(folder, sha256="0" * 64)
        assert "0" * 64 in caught.value.expected
        assert len(caught.value.got) == 64
    with pytest.raises(InputError, match="64 hex digits"):
        load_model(coca_folder, sha256="abc")


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_truncated_weights_are_an_error_that_names_the_file(coca_folder, kept):
    path = coca_folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(IntegrityError) as caught:
        load_model(coca_folder)
    assert caught.value.where == str(path)


def test_a_garbled_header_is_an_error_that_names_the_file(coca_folder):
    path = coca_folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:40] = b"\xff" * 32
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        load_model(coca_folder)


def test_a_pointer_of_git_lfs_is_recognised(coca_folder):
    (coca_folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    with pytest.raises(IntegrityError, match="git lfs pull"):
        load_model(coca_folder)


def test_weights_with_holes_are_refused_and_not_filled_with_random_numbers(coca_folder):
    path = coca_folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["image_encoder.positions"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match=r"missing.*image_encoder\.positions"):
        load_model(coca_folder)


def test_weights_of_another_shape_are_refused(coca_folder):
    path = coca_folder / "model.safetensors"
    tensors = load_file(path)
    tensors["image_encoder.positions"] = tensors["image_encoder.positions"][:, :-1].contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(IntegrityError):
        load_model(coca_folder)


def test_weights_the_model_has_no_place_for_are_said_not_hidden(coca_folder):
    path = coca_folder / "model.safetensors"
    save_file({**load_file(path), "parts.projector": torch.ones(1)}, path, metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"parts\.projector"):
        load_model(coca_folder)


def test_a_sound_model_loads_without_warning(coca_folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(coca_folder)


def test_a_missing_shard_is_named(bert_folder):
    shard = sorted(bert_folder.glob("*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(IntegrityError) as caught:
        load_model(bert_folder)
    assert caught.value.where == str(shard)


def test_an_index_that_points_outside_is_refused(bert_folder):
    index = bert_folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(IntegrityError, match="outside"):
        load_model(bert_folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "model.ckpt"])
def test_a_folder_of_pickles_is_refused_and_tells_the_field(coca_folder, name):
    (coca_folder / "model.safetensors").unlink()
    (coca_folder / name).write_bytes(b"never read")
    with pytest.raises(RecipeError, match=rf"{name}.*teacher\.allow_pickle: true") as caught:
        load_model(coca_folder)
    assert caught.value.where == "teacher.model"


def test_a_pickle_is_read_once_allowed(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertModel(BertConfig(vocab_size=20, max_position_embeddings=8, **sizes))
    model.config.architectures = ["BertModel"]
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = load_model(tmp_path, allow_pickle=True)
    assert torch.equal(loaded.embeddings.word_embeddings.weight, model.embeddings.word_embeddings.weight)


def test_safetensors_win_over_a_pickle_beside_them(coca_folder):
    (coca_folder / "pytorch_model.bin").write_bytes(b"never read")
    assert isinstance(load_model(coca_folder, allow_pickle=True), CocaModel)


def test_remote_code_is_refused_and_tells_the_field(coca_folder):
    (coca_folder / "evil.py").write_text("raise SystemExit('ran')\n")
    _edit(coca_folder, architectures=["Evil"], model_type="evil", auto_map={"AutoModel": "evil.Evil"})
    with pytest.raises(RecipeError, match=r"student\.allow_remote_code: true"):
        load_model(coca_folder, where="student.path")


def test_code_beside_a_known_class_is_not_run(bert_folder):
    (bert_folder / "evil.py").write_text("raise SystemExit('ran')\n")
    _edit(bert_folder, auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"})
    assert type(load_model(bert_folder)) is BertForSequenceClassification


@pytest.mark.parametrize("name", ["Trainer", "pipeline", "nothing", "CocaConfig", None])
def test_only_model_classes_can_be_named(coca_folder, name):
    _edit(coca_folder, architectures=[name] if name else None)
    with pytest.raises(RecipeError):
        load_model(coca_folder)


def test_a_bad_config_field_keeps_its_own_message(coca_folder):
    _edit(coca_folder, image_heads=5)
    with pytest.raises((InputError, IntegrityError), match="image_heads"):
        load_model(coca_folder)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b"", b"[" * 99999])
def test_a_damaged_config_is_named(coca_folder, content):
    (coca_folder / "config.json").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"config\.json"):
        load_model(coca_folder)


def test_a_folder_without_config_or_weights_says_which(tmp_path, coca_folder):
    with pytest.raises(IntegrityError, match=r"config\.json"):
        load_model(tmp_path)
    (coca_folder / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match="no weights"):
        load_model(coca_folder)


@pytest.mark.parametrize("name", ["./nowhere", "/no/where/at/all", "a/b/c", "with space"])
def test_a_missing_folder_is_a_recipe_error_without_a_download(name, monkeypatch):
    monkeypatch.setattr(loading, "_download", lambda *args: pytest.fail("tried to download"))
    with pytest.raises(RecipeError, match="no such folder") as caught:
        load_model(name)
    assert caught.value.where == "teacher.model"


def test_a_file_instead_of_its_folder_is_explained(coca_folder):
    with pytest.raises(RecipeError, match=r"Name .*model"):
        load_model(coca_folder / "model.safetensors")


def test_a_hub_name_that_cannot_be_reached_suggests_the_nearest_known_one(shelf, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(name, **options):
        assert options["revision"] == "v1"
        assert not any("bin" in p for p in options["allow_patterns"])
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(RecipeError, match=r'Did you mean "tiny"'):
        load_model("tinny", revision="v1")
    with pytest.raises(RecipeError, match=r'Did you mean "smollm2-135m-instruct"'):
        load_model("smollm2-135m", revision="v1")


def test_a_hub_name_is_loaded_from_where_it_was_stored(coca_folder, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(coca_folder))
    assert isinstance(load_model("someone/coca"), CocaModel)


def test_loading_draws_no_progress_bar_and_leaves_the_setting_alone(coca_folder, capfd):
    from transformers.utils import logging

    load_model(coca_folder)
    assert "Loading weights" not in capfd.readouterr().err
    assert logging.is_progress_bar_enabled()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_flipped_bit_is_harmless_or_an_error_of_ours(coca_folder, name):
    """In the description of the model; a changed number among the weights only a hash can show."""
    path = coca_folder / name
    whole = path.read_bytes()
    end = len(whole) if name == "config.json" else 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for i in range(0, end, max(1, end // 60)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :])
        # Anything else than an error of ours ends the test.
        with warnings.catch_warnings(), contextlib.suppress(PotstillError):
            warnings.simplefilter("ignore")
            refused += 1
            load_model(coca_folder)
            refused -= 1
    assert refused > 20


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["a folder", "a link to nothing", "a link to itself"])
def test_what_is_no_file_is_missing(coca_folder, name, kind):
    path = coca_folder / name
    path.unlink()
    path.mkdir() if kind == "a folder" else path.symlink_to("nowhere" if "nothing" in kind else name)
    with pytest.raises((IntegrityError, RecipeError), match=r"the file is missing|holds no weights"):
        load_model(coca_folder)


@pytest.mark.parametrize("field", ["image_layers", "num_labels"])
def test_a_config_of_absurd_size_is_refused_before_anything_is_built(coca_folder, field):
    _edit(coca_folder, **{field: 10**9})
    with pytest.raises(IntegrityError, match=f"config.json: no model is that large; expected {field} of at most"):
        load_model(coca_folder)


def test_gguf_is_refused_with_what_to_do(tmp_path, coca_folder):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(RecipeError, match=r"is a file.*GGUF files are not read: convert"):
        load_model(file)
    (tmp_path / "only").mkdir()
    shutil.copy(file, tmp_path / "only")
    with pytest.raises(IntegrityError, match=r"config\.json: the file is missing\. GGUF files are not read"):
        load_model(tmp_path / "only")
    (coca_folder / "model.safetensors").rename(coca_folder / "model.gguf")
    with pytest.raises(RecipeError, match=r"the folder holds no weights.*GGUF files are not read"):
        load_model(coca_folder)


@pytest.mark.parametrize("name", ["~nobody-has-this-name/x", "x/" * 5000, "/" + "x" * 5000])
def test_what_can_be_no_path_is_a_recipe_error(name):
    with pytest.raises(RecipeError, match="is no path"):
        load_model(name)


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x80\x04cos\nsystem\n"])
def test_a_damaged_pickle_is_an_error_also_where_pickles_are_allowed(coca_folder, content):
    (coca_folder / "model.safetensors").unlink()
    (coca_folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(IntegrityError, match="cannot be loaded as CocaModel"):
        load_model(coca_folder, allow_pickle=True)
