import pytest
import torch

from potstill.errors import InputError, RecipeError
from potstill.students import STUDENTS, build_config_student, build_student
from potstill.students.configs import changed_config, flatten


def test_no_change_gives_the_teacher(tiny):
    teacher, batch = tiny("coca")
    student, record = build_config_student(teacher, {})
    assert record.fresh == []
    with torch.no_grad():
        assert torch.equal(student.eval()(**batch).caption_logits, teacher(**batch).caption_logits)


def test_matching_tensors_are_copied_and_the_rest_is_listed(tiny):
    teacher, _ = tiny("coca")
    student, record = build_config_student(teacher, {"caption_queries": 1})
    assert record.fresh == ["image_pooler.caption.query"]
    for name in record.copied:
        assert torch.equal(student.state_dict()[name], teacher.state_dict()[name])
    assert student.config.caption_queries == 1
    assert teacher.config.caption_queries == 2


def test_copying_can_be_left_out(tiny):
    teacher, _ = tiny("vit")
    student, record = build_config_student(teacher, {}, copy_matching=False)
    assert record.copied == []
    name = "vit.layers.0.mlp.fc1.weight"
    assert not torch.equal(student.state_dict()[name], teacher.state_dict()[name])


def test_nested_and_dotted_overrides_mean_the_same(tiny):
    teacher, _ = tiny("clip")
    nested, _ = build_config_student(teacher, {"vision_config": {"num_hidden_layers": 1}})
    dotted, _ = build_config_student(teacher, {"vision_config.num_hidden_layers": 1})
    assert str(nested.config) == str(dotted.config)
    assert len(nested.vision_model.encoder.layers) == 1


def test_a_table_that_is_the_value_of_a_field_stays_whole(tiny):
    config = tiny("coca")[0].config
    assert flatten({"task_labels": {"vqa": ["a", "b", "c"]}}, config) == {"task_labels": {"vqa": ["a", "b", "c"]}}
    student, record = build_config_student(tiny("coca")[0], {"task_labels": {"vqa": ["a", "b", "c"]}})
    assert student.task_heads["vqa"].out_features == 3
    assert record.fresh == ["task_heads.vqa.weight", "task_heads.vqa.bias"]


def test_changing_a_copy_of_a_configuration_leaves_the_original(tiny):
    config = tiny("clip")[0].config
    before = str(config)
    changed_config(config, {"text_config.hidden_size": 8})
    assert str(config) == before


@pytest.mark.parametrize(
    ("name", "overrides", "error", "message"),
    [
        ("coca", {"image_widht": 8}, RecipeError, 'overrides: CocaConfig has no field "image_widht".*"image_width"'),
        ("clip", {"vision_config.hiden_size": 8}, RecipeError, 'CLIPConfig.vision_config has no field "hiden_size"'),
        ("clip", {"vison_config.hidden_size": 8}, RecipeError, 'no field "vison_config.hidden_size"'),
        ("clip", {"vision_config": {"hiden_size": 8}}, RecipeError, 'Did you mean "hidden_size"'),
        ("coca", {"image_width": 15}, InputError, "a divisor of image_width 15"),
        (
            "clip",
            {"text_config.hidden_size": 15},
            InputError,
            "CLIPConfig refuses these sizes: .*15. is not a multiple",
        ),
        ("bert", {"hidden_size": "wide"}, InputError, 'the value of "hidden_size" is refused'),
        ("vit", {"hidden_act": "glue"}, InputError, "ViTForImageClassification cannot be built with these sizes"),
        ("vit", 3, RecipeError, "overrides: not a table of fields"),
    ],
)
def test_bad_overrides_say_where_and_what(tiny, name, overrides, error, message):
    with pytest.raises(error, match=message):
        build_config_student(tiny(name)[0], overrides)


def test_builders_are_called_by_name(tiny):
    assert list(STUDENTS) == [*("config", "depth", "new", "pretrained", "shared_classifier", "wide_head", "width")]
    student, record = build_student("depth", tiny("vit")[0], {"layers": 1})
    assert (record.builder, len(student.vit.layers)) == ("depth", 1)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("dept", {}, RecipeError, r'student\.builder: unknown student builder "dept"\. Did you mean "depth"'),
        ("depth", {"layer": 1}, RecipeError, r'student\.layer: .*has no argument "layer"\. Did you mean "layers"'),
        ("depth", {"teacher": 1}, RecipeError, 'has no argument "teacher"'),
        ("depth", {}, RecipeError, r'student\.layers: student builder "depth" needs "layers"'),
        ("depth", {"layers": 9}, InputError, r"student\.layers: .*expected 1 to 4; got 9"),
    ],
)
def test_bad_calls_by_name_are_placed_in_the_recipe(tiny, name, arguments, error, message):
    with pytest.raises(error, match=message):
        build_student(name, tiny("vit")[0], arguments)


@pytest.mark.parametrize(
    ("name", "arguments"), [("depth", {"layers": 1}), ("width", {"width": 8}), ("config", {"overrides": {}})]
)
def test_builders_that_need_a_teacher_say_so(name, arguments):
    with pytest.raises(InputError, match=r'student: this builder derives the student from a teacher.*"pretrained"'):
        build_student(name, None, arguments)


def test_a_record_is_plain_data(tiny):
    import json

    _, record = build_student("width", tiny("vit")[0], {"width": 8, "init": "sliced"})
    plain = json.loads(json.dumps(record.as_dict()))
    assert plain["sliced"] == len(record.sliced) > 0
    assert plain["layers"] == {"image_encoder": [0, 1, 2, 3]}
    assert plain["arguments"]["width"] == 8
