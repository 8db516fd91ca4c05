"""Batches of scenes as a model from elsewhere expects them: its tokens, its first and last one, its pictures."""

import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from potstill.data.scene_source import build_scenes
from potstill.data.scenes.tokenizer import build_tokenizer
from potstill.errors import RecipeError
from potstill.run import plan
from potstill.students import build_student

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def hub_like(tmp_path):
    """Folder of a tiny BLIP as the hub has them: a BERT tokenizer without BOS, and a first token that is none of it."""
    words = [w for w in build_tokenizer(12).get_vocab() if not w.startswith("[")]
    table = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    backend = Tokenizer(models.WordLevel(table, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(tmp_path)
    begin = len(table)
    text = {**SIZES, "vocab_size": begin + 2, "bos_token_id": begin, "sep_token_id": 3, "pad_token_id": 0}
    vision = {**SIZES, "image_size": 64, "patch_size": 16}
    fields = {"text_config": text, "vision_config": vision}
    given = {"family": "blip", "architecture": "BlipForQuestionAnswering", "fields": fields}
    build_student("new", None, given)[0].save_pretrained(tmp_path)
    settings = {"image_mean": MEAN, "image_std": STD, "size": {"height": 64, "width": 64}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    return tmp_path, begin


def scenes(**options):
    return build_scenes(tasks=["vqa"], form="question_answer", concepts=12, **options)


def test_answers_begin_and_end_with_the_models_tokens(hub_like):
    folder, begin = hub_like
    source = scenes(tokenizer=str(folder))
    batch = source.example()
    assert batch["decoder_input_ids"][:, 0].tolist() == batch["labels"][:, 0].tolist() == [begin, begin]
    assert all(row[row != -100][-1] == 3 for row in batch["labels"])
    assert source.model_fields["bos_token_id"] == begin
    (folder / "config.json").unlink()  # the tokenizer alone knows nothing of it
    assert scenes(tokenizer=str(folder)).example()["decoder_input_ids"][:, 0].tolist() == [2, 2]


def test_pictures_have_the_models_size_and_colours(hub_like):
    folder, _ = hub_like
    plain, made = (
        scenes(image_size=64).example()["pixel_values"],
        scenes(tokenizer=str(folder), image_size=64).example(),
    )
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    torch.testing.assert_close(made["pixel_values"], (plain / 2 + 0.5 - mean) / std)
    enlarged = scenes(tokenizer=str(folder), image_size=32).example()["pixel_values"]
    assert enlarged.shape == (2, 3, 64, 64)
    assert (enlarged - made["pixel_values"]).abs().mean() < 0.2


def test_a_teacher_from_elsewhere_is_distilled_by_name(hub_like):
    folder, _ = hub_like
    given = [f"teacher.model={folder}", "data.concepts=12", "train.batch_size=2", "train.threads=1"]
    heads = [f"student.overrides.{part}.num_hidden_layers=1" for part in ("vision_config", "text_config")]
    (made,) = plan("kd-blip-vqa", [*given, *heads, f"data.tokenizer={folder}", "evaluate.samples=2"])
    assert made["objectives"][0]["start"] >= 0
    other = folder.parent / "other"
    shutil.copytree(folder, other)
    (other / "config.json").unlink()
    with pytest.raises(RecipeError, match=r"made for other data.*bos_token_id") as error:
        plan("kd-blip-vqa", [*given, *heads, f"data.tokenizer={other}", "evaluate.samples=2"])
    assert error.value.where == "teacher.model"


def test_a_configuration_that_cannot_be_read_is_refused(hub_like):
    folder, _ = hub_like
    (folder / "config.json").write_text("{")
    with pytest.raises(RecipeError, match="cannot be read") as error:
        scenes(tokenizer=str(folder))
    assert error.value.where == "tokenizer"
