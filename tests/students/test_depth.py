import hashlib

import pytest
import torch
from torch import nn

from potstill.errors import InputError, RecipeError
from potstill.models.families import family_of
from potstill.students import build_depth_student

ALL = ["coca", "clip", "siglip", "blip", "blip-caption", "blip-vqa", "vit-gpt2", "vit-bert", "t5", "bert", "bert-mlm"]
ALL += ["vit", "llama", "qwen3", "vl_t5"]


def fingerprint(model):
    content = hashlib.sha256(str(getattr(model, "config", "")).encode())
    for name, tensor in sorted(model.state_dict().items()):
        content.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return content.hexdigest()


def outputs(model, batch):
    with torch.no_grad():
        out = model(**batch)
    return [value for value in out.values() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("name", ALL)
def test_a_student_with_all_layers_is_the_teacher(tiny, name):
    teacher, batch = tiny(name)
    student, record = build_depth_student(teacher, 4)
    assert type(student) is type(teacher)
    assert record.fresh == record.sliced == []
    assert set(record.copied) == set(teacher.state_dict())
    pairs = list(zip(outputs(student.eval(), batch), outputs(teacher, batch)))
    assert pairs
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ALL)
def test_a_student_with_half_the_layers_copies_every_second_and_the_last(tiny, name):
    teacher, batch = tiny(name)
    before = fingerprint(teacher)
    student, record = build_depth_student(teacher, 2)
    assert fingerprint(teacher) == before
    assert record.fresh == []
    assert record.parameters == sum(p.numel() for p in student.parameters()) < record.teacher_parameters
    for spec in family_of(teacher).modules:
        assert record.layers[spec.name] == [1, 3]
        blocks = [student.get_submodule(spec.blocks), teacher.get_submodule(spec.blocks)]
        assert len(blocks[0]) == 2
        for i, j in ((0, 1), (1, 3)):
            ours, theirs = blocks[0][i].state_dict(), blocks[1][j].state_dict()
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert all(torch.isfinite(value).all() for value in outputs(student.eval(), batch))


@pytest.mark.parametrize("name", ["coca", "clip", "t5", "qwen3"])
def test_a_student_is_saved_and_loaded_by_its_own_class(tiny, tmp_path, name):
    teacher, batch = tiny(name)
    student, _ = build_depth_student(teacher, 2)
    student.save_pretrained(tmp_path)
    loaded = type(teacher).from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(outputs(student.eval(), batch), outputs(loaded.eval(), batch)))


def test_student_and_teacher_share_no_memory_and_the_student_trains(tiny):
    teacher, batch = tiny("coca")
    before = fingerprint(teacher)
    teacher.requires_grad_(False)
    try:
        student, _ = build_depth_student(teacher, 2)
        assert all(p.requires_grad for p in student.parameters())
        assert student.training
        student(**batch).caption_logits.sum().backward()
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.fill_(1.0)
    finally:
        teacher.requires_grad_(True)
    assert fingerprint(teacher) == before
    assert all(p.grad is None for p in teacher.parameters())


def test_modules_take_different_depths_and_the_rest_stays(tiny):
    student, record = build_depth_student(tiny("coca")[0], {"image_encoder": 1, "text_decoder": [0, 3]})
    assert record.layers == {"image_encoder": [3], "text_decoder": [0, 3], "multimodal_decoder": [0, 1, 2, 3]}
    config = student.config
    assert (config.image_layers, config.text_layers, config.multimodal_layers) == (1, 2, 4)


def test_t5_keeps_the_position_bias_of_block_0(tiny):
    teacher, _ = tiny("t5")
    student, _ = build_depth_student(teacher, {"text_encoder": 1})
    key = "layer.0.SelfAttention.relative_attention_bias.weight"
    assert torch.equal(student.encoder.block[0].state_dict()[key], teacher.encoder.block[0].state_dict()[key])


def test_fields_with_an_entry_per_layer_are_selected_with_the_layers():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen2Config(**sizes, num_hidden_layers=4, vocab_size=20, layer_types=kinds, sliding_window=2)
    student, _ = build_depth_student(Qwen2ForCausalLM(config), {"text_decoder": [0, 1, 3]})
    assert student.config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]


def test_half_precision_teachers_give_single_precision_students():
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    teacher = BertModel(BertConfig(**sizes, vocab_size=9))
    half, _ = build_depth_student(teacher.to(torch.bfloat16), 1)
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    double, _ = build_depth_student(teacher.to(torch.float64), 1)
    assert {p.dtype for p in double.parameters()} == {torch.float64}


def test_the_teachers_way_to_generate_is_kept(tiny):
    teacher, _ = tiny("t5")
    teacher.generation_config.num_beams = 3
    try:
        student, _ = build_depth_student(teacher, 2)
    finally:
        teacher.generation_config.num_beams = 1
    assert student.generation_config.num_beams == 3


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 3)
        self.deep = nn.Module()
        self.deep.blocks = nn.ModuleList(nn.Sequential(nn.Linear(3, 3)) for _ in range(6))
        self.tail = nn.Sequential(*(nn.Sequential(nn.Linear(3, 3)) for _ in range(4)))

    def forward(self, x):
        x = self.stem(x)
        for block in self.deep.blocks:
            x = block(x)
        return self.tail(x)


def test_a_plain_module_is_cut_by_path():
    teacher = Plain().requires_grad_(False)
    before = fingerprint(teacher)
    student, record = build_depth_student(teacher, {"a": 2, "b": 1}, modules={"a": "deep.blocks", "b": "tail"})
    x = torch.randn(2, 3)
    expected = teacher.tail[3](teacher.deep.blocks[5](teacher.deep.blocks[2](teacher.stem(x))))
    assert torch.equal(student(x), expected)
    assert record.layers == {"a": [2, 5], "b": [3]}
    assert all(p.requires_grad for p in student.parameters())
    assert fingerprint(teacher) == before


def test_a_model_of_transformers_is_cut_by_path_and_configuration_field(tiny):
    modules = {"mine": {"blocks": "vit.layers", "depth": "num_hidden_layers"}}
    student, record = build_depth_student(tiny("vit")[0], 1, modules=modules)
    assert (len(student.vit.layers), record.layers) == (1, {"mine": [3]})


@pytest.mark.parametrize(
    ("layers", "modules", "error", "message"),
    [
        (0, None, InputError, r"layers: the teacher's image_encoder has 4 layers; expected 1 to 4; got 0"),
        ({"image_encoder": 5}, None, InputError, r"layers\.image_encoder: .*expected 1 to 4; got 5"),
        ({"image_encodr": 2}, None, RecipeError, r'unknown module "image_encodr"\. Did you mean "image_encoder"'),
        ({"image_encoder": True}, None, InputError, "not a number of layers"),
        ({"image_encoder": "2"}, None, InputError, "not a number of layers"),
        ({"image_encoder": 1.5}, None, InputError, "not a number of layers"),
        ({"image_encoder": []}, None, InputError, "not a choice of layers"),
        ({"image_encoder": [2, 1]}, None, InputError, "rising integers from 0"),
        ({"image_encoder": [0, 4]}, None, InputError, "has layers 0 to 3"),
        (1, {"m": "vision_model.encoder.layer"}, RecipeError, r'no such module.*Did you mean "vision_model.encoder.l'),
        (1, {"m": "visual_projection"}, RecipeError, "is no list of blocks.*vision_model.encoder.layers"),
        (1, {"m": 3}, RecipeError, r"modules\.m: not a module"),
        (1, {"m": {"blocks": "vision_model.encoder.layers", "deep": "x"}}, RecipeError, 'unknown field "deep"'),
        (
            1,
            {"m": {"blocks": "vision_model.encoder.layers", "depth": "text_config.num_hidden_layers"}},
            RecipeError,
            r"modules\.m\.depth: .*does not set the depth of m; expected 1 layers; got 4",
        ),
        (
            1,
            {"m": {"blocks": "vision_model.encoder.layers", "depth": "vision_config.layers"}},
            RecipeError,
            'has no field "layers"',
        ),
    ],
)
def test_bad_depths_say_where_and_what(tiny, layers, modules, error, message):
    with pytest.raises(error, match=message):
        build_depth_student(tiny("clip")[0], layers, modules=modules)


def test_stacks_that_share_a_depth_must_agree(tiny):
    with pytest.raises(InputError, match=r"text_encoder and text_decoder share the field text_config.num_hidden_layer"):
        build_depth_student(tiny("blip-vqa")[0], {"text_encoder": 2})


def test_a_path_without_its_field_names_the_fields_that_fit(tiny):
    with pytest.raises(RecipeError, match=r"which field holds the depth.*Fields that are 4 now: .*num_hidden_layers"):
        build_depth_student(tiny("vit")[0], 2, modules={"m": "vit.layers"})


def test_an_unknown_model_without_paths_names_its_lists_of_blocks():
    with pytest.raises(RecipeError, match=r"Plain is of no known family.*deep\.blocks, tail"):
        build_depth_student(Plain(), 2)
