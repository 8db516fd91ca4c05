"""Models from scratch: a class by name, fields in nested configurations, what the data dictates."""

import pytest
import torch

from potstill.errors import InputError, RecipeError
from potstill.models.load import load_model
from potstill.students import build_student

SIZES = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 8}
FIELDS = {"text_config": SIZES, "vision_config": {**SIZES, "patch_size": 8}}
DATA = {"image_size": 16, "vocab_size": 50, "pad_token_id": 4, "bos_token_id": 5, "eos_token_id": 6}


def build(**arguments):
    given = {"family": "blip", "architecture": "BlipForQuestionAnswering", "fields": FIELDS, "data_fields": DATA}
    return build_student("new", None, {**given, **arguments})


@pytest.mark.parametrize("architecture", ["BlipForQuestionAnswering", "BlipForConditionalGeneration"])
def test_a_class_is_built_by_name_and_comes_back_from_its_folder(tmp_path, architecture):
    model, record = build(architecture=architecture)
    assert type(model).__name__ == record.student_class == architecture
    assert record.arguments["architecture"] == architecture
    model.save_pretrained(tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert type(again) is type(model)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


def test_what_the_data_dictates_reaches_the_nested_configurations():
    config = build()[0].config
    text, vision = config.text_config, config.vision_config
    assert (text.vocab_size, text.pad_token_id, text.bos_token_id, text.eos_token_id) == (50, 4, 5, 6)
    assert vision.image_size == 16
    assert text.sep_token_id == 6  # where BLIP ends its answers
    assert not hasattr(vision, "vocab_size")
    assert build(fields={**FIELDS, "text_config": {**SIZES, "sep_token_id": 9}})[0].config.text_config.sep_token_id == 9


def test_a_family_without_a_class_is_its_plain_model():
    model, _ = build_student("new", None, {"family": "bert", "fields": SIZES, "data_fields": {"vocab_size": 50}})
    assert type(model).__name__ == "BertModel"
    assert model.config.vocab_size == 50


def test_the_start_of_a_parameter_can_be_scaled():
    path = "vision_model.embeddings.position_embedding"
    plain, scaled = build()[0].state_dict(), build(scale={path: 7})[0].state_dict()
    torch.testing.assert_close(scaled.pop(path), 7 * plain.pop(path))
    assert all(torch.equal(scaled[name], value) for name, value in plain.items())


def test_a_model_can_start_from_the_shared_parts_of_another(tmp_path):
    answering, _ = build(seed=1)
    answering.save_pretrained(tmp_path / "answering")
    captioning, record = build(architecture="BlipForConditionalGeneration", start=str(tmp_path / "answering"))
    assert record.fresh == []
    assert record.arguments["start"] == str(tmp_path / "answering")
    for name, value in captioning.state_dict().items():
        assert torch.equal(value, answering.state_dict()[name]), name

    plain, _ = build_student("new", None, {"family": "t5", "fields": {"num_layers": 1, "vocab_size": 9, "d_model": 8}})
    plain.save_pretrained(tmp_path / "t5")
    with pytest.raises(InputError, match="no tensor in common") as error:
        build(start=str(tmp_path / "t5"))
    assert error.value.where == "student.start"
    with pytest.raises(RecipeError) as error:
        build(start=str(tmp_path / "nothing"))
    assert error.value.where == "student.start"


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"scale": {"position_embedding": 7}}, "student.scale.position_embedding"),
        (
            {"scale": {"vision_model.embeddings.position_embedding": "7"}},
            "student.scale.vision_model.embeddings.position_embedding",
        ),
        ({"scale": 7}, "student.scale"),
        ({"architecture": "BlipForQuestionAnswer"}, "student.architecture"),
        ({"architecture": "BertModel"}, "student.architecture"),
        ({"architecture": "BlipPreTrainedModel"}, "student.architecture"),
        ({"architecture": 3}, "student.architecture"),
        ({"family": "coca", "fields": {}, "architecture": "BlipModel"}, "student.architecture"),
        ({"family": "vision-encoder-decoder", "fields": {}, "architecture": None}, "student.architecture"),
        ({"fields": {"text_config": {"hiden_size": 24}}}, "student.fields.text_config.hiden_size"),
        ({"fields": {"text_konfig": SIZES}}, "student.fields.text_konfig"),
        ({"fields": {"text_config": 3}}, "student.fields.text_config"),
        ({"fields": {"text_config": {**SIZES, "vocab_size": 7}}}, "student.fields.text_config.vocab_size"),
        ({"family": "bert", "architecture": None, "fields": {"vocab_size": 7}}, "student.fields.vocab_size"),
    ],
)
def test_what_does_not_exist_or_fit_is_placed(arguments, where):
    with pytest.raises(RecipeError) as error:
        build(**arguments)
    assert error.value.where == where
