import hashlib

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from potstill.errors import InputError, RecipeError
from potstill.models.families import family_of
from potstill.students import build_width_student
from potstill.students.copying import leading_slice

ALL = ["coca", "clip", "siglip", "blip", "blip-caption", "blip-vqa", "vit-gpt2", "vit-bert", "t5", "bert", "bert-mlm"]
ALL += ["vit", "llama", "qwen3", "vl_t5"]


def fingerprint(model):
    content = hashlib.sha256(str(model.config).encode())
    for name, tensor in sorted(model.state_dict().items()):
        content.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return content.hexdigest()


def outputs(model, batch):
    with torch.no_grad():
        out = model.eval()(**batch)
    return [value for value in out.values() if isinstance(value, torch.Tensor)]


def width_of(model, spec):
    value = model.config
    for name in spec.width.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize("init", ["random", "sliced"])
@pytest.mark.parametrize("name", ALL)
def test_half_the_width_runs_in_every_family_and_leaves_the_teacher_alone(tiny, name, init):
    teacher, batch = tiny(name)
    before = fingerprint(teacher)
    student, record = build_width_student(teacher, 8, init=init)
    assert fingerprint(teacher) == before
    assert type(student) is type(teacher)
    assert all(width_of(student, spec) == 8 for spec in family_of(student).modules)
    assert record.parameters < record.teacher_parameters
    assert all(torch.isfinite(value).all() for value in outputs(student, batch))
    named = [*record.copied, *record.sliced, *record.fresh]
    assert sorted(named) == sorted(student.state_dict())
    assert bool(record.fresh) == (init == "random")


@pytest.mark.parametrize("name", ALL)
def test_slicing_to_the_full_width_gives_the_teacher(tiny, name):
    teacher, batch = tiny(name)
    student, record = build_width_student(teacher, 16, init="sliced")
    assert record.sliced == record.fresh == []
    assert all(torch.equal(a, b) for a, b in zip(outputs(student, batch), outputs(teacher, batch)))


def test_slices_are_the_leading_rows_and_columns(tiny):
    teacher, _ = tiny("coca")
    student, record = build_width_student(teacher, 8, init="sliced")
    for name in record.sliced:
        small, large = student.state_dict()[name], teacher.state_dict()[name]
        assert torch.equal(small, large[tuple(slice(n) for n in small.shape)]), name


def test_fused_projections_are_sliced_one_by_one(tiny):
    teacher, _ = tiny("vit-gpt2")
    student, _ = build_width_student(teacher, 8, init="sliced")
    small = student.decoder.transformer.h[0].attn.c_attn
    large = teacher.decoder.transformer.h[0].attn.c_attn
    for i in range(3):  # query, key, value lie side by side in the columns of GPT-2's matrix
        assert torch.equal(small.weight[:, 8 * i : 8 * i + 8], large.weight[:8, 16 * i : 16 * i + 8])
        assert torch.equal(small.bias[8 * i : 8 * i + 8], large.bias[16 * i : 16 * i + 8])
    cross_s, cross_t = student.decoder.transformer.h[0].crossattention, teacher.decoder.transformer.h[0].crossattention
    assert torch.equal(cross_s.c_attn.weight[:, 8:], cross_t.c_attn.weight[:8, 16:24])


def test_fused_rows_are_sliced_one_by_one(tiny):
    teacher, _ = tiny("siglip")
    student, _ = build_width_student(teacher, 8, init="sliced")
    small, large = student.vision_model.head.attention, teacher.vision_model.head.attention
    for i in range(3):
        rows_s, rows_t = slice(8 * i, 8 * i + 8), slice(16 * i, 16 * i + 8)
        assert torch.equal(small.in_proj_weight[rows_s], large.in_proj_weight[rows_t, :8])
        assert torch.equal(small.in_proj_bias[rows_s], large.in_proj_bias[rows_t])


def test_leading_slice_by_hand():
    large = torch.arange(24.0).view(6, 4)
    assert leading_slice(large, (2, 3)).tolist() == [[0, 1, 2], [4, 5, 6]]
    assert leading_slice(large, (2, 2), axis=0, parts=2).tolist() == [[0, 1], [12, 13]]


def test_heads_keep_their_size_and_hidden_units_their_ratio(tiny):
    student, _ = build_width_student(tiny("vit")[0], 8)
    config = student.config
    assert (config.num_attention_heads, config.intermediate_size, config.pooler_output_size) == (1, 16, 8)


def test_heads_and_hidden_units_can_be_chosen(tiny):
    student, _ = build_width_student(tiny("vit")[0], 12, heads=3, ffn=20)
    assert (student.config.num_attention_heads, student.config.intermediate_size) == (3, 20)


def test_width_and_depth_go_together(tiny):
    teacher, _ = tiny("bert")
    student, record = build_width_student(teacher, 8, layers=2, init="sliced")
    assert record.layers == {"text_encoder": [1, 3]}
    small = student.encoder.layer[1].intermediate.dense.weight
    assert torch.equal(small, teacher.encoder.layer[3].intermediate.dense.weight[:16, :8])


def test_one_tower_can_be_narrowed_alone(tiny):
    teacher, batch = tiny("clip")
    student, _ = build_width_student(teacher, {"image_encoder": 8}, init="sliced")
    assert (student.config.vision_config.hidden_size, student.config.text_config.hidden_size) == (8, 16)
    assert torch.equal(student(**batch).text_embeds, teacher(**batch).text_embeds)


def test_what_must_equal_another_width_follows_it(tiny):
    student, _ = build_width_student(tiny("siglip")[0], {"image_encoder": 8})
    assert student.config.text_config.projection_size == 8
    student, _ = build_width_student(tiny("blip-caption")[0], {"image_encoder": 8})
    assert student.config.text_config.encoder_hidden_size == 8
    student, _ = build_width_student(tiny("coca")[0], {"text_decoder": 8})
    assert student.config.pooler_heads == student.config.text_heads == 1


def test_an_encoder_decoder_with_unequal_widths_lists_what_had_to_be_new(tiny):
    teacher, batch = tiny("vit-bert")
    student, record = build_width_student(teacher, {"image_encoder": 8}, init="sliced")
    assert record.fresh == ["enc_to_dec_proj.weight", "enc_to_dec_proj.bias"]
    assert outputs(student, batch)


def test_grouped_key_value_heads_scale_with_the_heads():
    sizes = {"intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 20, "max_position_embeddings": 16}
    teacher = LlamaForCausalLM(LlamaConfig(hidden_size=32, num_attention_heads=8, num_key_value_heads=4, **sizes))
    student, _ = build_width_student(teacher, 16, init="sliced")
    config = student.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 4)
    random, _ = build_width_student(teacher, 12)
    assert (random.config.num_attention_heads, random.config.num_key_value_heads) == (3, 1)
    with pytest.raises(InputError, match="cannot be divided into 5 heads"):
        build_width_student(teacher, 12, heads=5)
    wide, _ = build_width_student(teacher, 24, heads=3)
    assert wide.config.head_dim == 8
    with pytest.raises(InputError, match=r"width: slicing keeps .* head 2 .* key-value head 1, would read 0"):
        build_width_student(teacher, 20, init="sliced")
    grouped = LlamaForCausalLM(LlamaConfig(hidden_size=32, num_attention_heads=8, num_key_value_heads=2, **sizes))
    student, _ = build_width_student(grouped, 12, init="sliced")  # its three heads all read key-value head 0 there
    assert student.config.num_key_value_heads == 1


def test_the_seed_alone_decides_a_random_start(tiny):
    teacher, _ = tiny("coca")
    torch.manual_seed(5)
    first, _ = build_width_student(teacher, 8, seed=1)
    after = torch.rand(2)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(2))
    torch.manual_seed(6)
    again, _ = build_width_student(teacher, 8, seed=1)
    other, _ = build_width_student(teacher, 8, seed=2)
    assert fingerprint(first) == fingerprint(again)
    assert fingerprint(first) != fingerprint(other)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("vit", {"width": 10}, InputError, r"width: 10 cannot be divided into heads of size 8.*such as 8 or 16"),
        ("vit", {"width": 12, "heads": 5}, InputError, "heads: width 12 of image_encoder cannot be divided into 5"),
        ("vit", {"width": 0}, InputError, "width: not a size for image_encoder; expected an integer, at least 1"),
        ("vit", {"width": 8.0}, InputError, "not a size"),
        ("vit", {"width": 32}, InputError, "width: the teacher's image_encoder is 16 wide; expected 1 to 16; got 32"),
        ("vit", {"width": 8, "heads": 2, "init": "sliced"}, InputError, "from 2 heads of size 8 to 2 of size 4"),
        ("vit", {"width": 8, "ffn": 64, "init": "sliced"}, InputError, "ffn: .* has 32 hidden units to slice from"),
        ("vit", {"width": 8, "init": "slice"}, RecipeError, 'init: unknown init "slice"\\. Did you mean "sliced"'),
        ("vit", {"width": {"image": 8}}, RecipeError, r'width\.image: unknown module "image"\. Did you mean'),
        ("clip", {"width": {"text_encoder": 9}}, InputError, r"width\.text_encoder: 9 cannot be divided"),
        ("coca", {"width": 8, "ffn": {"text_decoder": 9}}, InputError, "no field for the ffn of text_decoder"),
        (
            "t5",
            {"width": {"text_encoder": 8, "text_decoder": 16}},
            InputError,
            r"width\.text_decoder: text_encoder and text_decoder share the field d_model; expected 8 like text_encoder",
        ),
        ("vit", {"width": 8, "seed": "a"}, InputError, "seed: not a seed"),
        ("vit", {"width": 8, "layers": 9}, InputError, "layers: .*expected 1 to 4; got 9"),
    ],
)
def test_bad_widths_say_where_and_what(tiny, name, arguments, error, message):
    with pytest.raises(error, match=message):
        build_width_student(tiny(name)[0], **arguments)


def test_a_module_without_configuration_is_refused():
    with pytest.raises(InputError, match="Linear has no configuration"):
        build_width_student(torch.nn.Linear(2, 2), 1)
