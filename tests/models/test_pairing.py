import copy

import pytest
from torch import nn

from potstill.errors import RecipeError, ShapeError
from potstill.models.pairing import resolve_modules
from potstill.models.paths import block_lists, expand_path
from potstill.students import build_depth_student


class Net(nn.Module):
    def __init__(self, n, last=3):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(n))
        self.stages = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2)) for _ in range(last)))
        self.empty = nn.ModuleList()


@pytest.mark.parametrize("name", ["coca", "clip", "blip-vqa", "vit-gpt2", "t5", "bert-mlm", "vit", "llama"])
def test_families_pair_a_shallow_student_with_its_teacher(tiny, name):
    teacher, _ = tiny(name)
    student, _ = build_depth_student(teacher, 2)
    modules = resolve_modules(student, teacher)
    assert modules
    for module in modules:
        stack = module.student_blocks[0].rpartition(".")[0]
        assert module.pairs == [(f"{stack}.0", f"{stack}.1"), (f"{stack}.1", f"{stack}.3")]


def test_models_of_different_classes_are_paired_by_module_name(tiny):
    (module,) = resolve_modules(tiny("bert")[0], tiny("clip")[0])
    assert module.name == "text_encoder"
    assert module.student_blocks[0] == "encoder.layer.0"
    assert module.teacher_blocks[0] == "text_model.encoder.layers.0"


def test_models_with_no_module_in_common_are_refused_with_what_they_have(tiny):
    with pytest.raises(RecipeError, match=r"modules: .*ViTForImageClassification has image_encoder.*has text_decoder"):
        resolve_modules(tiny("vit")[0], tiny("llama")[0])
    with pytest.raises(RecipeError, match=r"Net is of no known family; its block lists: blocks, stages"):
        resolve_modules(Net(2), Net(2))


def test_modules_by_path_work_on_any_model():
    spec = {
        "all": {"student": "blocks", "teacher": "blocks", "mask": "m"},
        "some": {"student": "blocks.*", "teacher": "blocks.[024]", "map": None},
        "one": {"student": "stages", "teacher": "stages.1"},
        "hand": {"student": "blocks", "teacher": "blocks", "map": [[0, 5], [2, 0]]},
    }
    all_, some, one, hand = resolve_modules(Net(3), Net(6), spec)
    assert all_.pairs == [("blocks.0", "blocks.1"), ("blocks.1", "blocks.3"), ("blocks.2", "blocks.5")]
    assert (all_.mask, some.mask) == ("m", None)
    assert some.teacher_blocks == ["blocks.0", "blocks.2", "blocks.4"]
    assert one.pairs == [("stages", "stages.1")]
    assert hand.pairs == [("blocks.0", "blocks.5"), ("blocks.2", "blocks.0")]


def test_what_a_recipe_leaves_out_comes_from_the_family(tiny):
    teacher, _ = tiny("clip")
    spec = {"text_encoder": {"map": [[0, 3]]}, "image_encoder": None}
    text, image = resolve_modules(teacher, teacher, spec)
    assert text.pairs == [("text_model.encoder.layers.0", "text_model.encoder.layers.3")]
    assert text.mask == "attention_mask"
    assert len(image.pairs) == 4
    (unmasked,) = resolve_modules(teacher, teacher, {"text_encoder": {"mask": None}})
    assert unmasked.mask is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"a": {"student": "blocks.7", "teacher": "blocks"}},
            r'modules\.a\.student: "blocks\.7": no such module \(student has blocks\.0 \.\.\. blocks\.2\)\. '
            r'Did you mean "blocks.*Run "potstill inspect"',
        ),
        ({"a": {"student": "blocks", "teacher": "blocs"}}, r'teacher has blocks, stages\)\. Did you mean "blocks"'),
        ({"a": {"student": "blocks.9*", "teacher": "blocks"}}, r"matches no module \(student has blocks\.0 \.\.\."),
        ({"a": {"student": "empty", "teacher": "blocks"}}, '"empty" of the student is an empty list'),
        ({"a": {"student": "blocks"}}, r"modules\.a\.teacher: no path is given"),
        ({"a": {"studnet": "blocks"}}, r'modules\.a\.studnet: unknown field "studnet"\. Did you mean "student"'),
        ({"a": {"student": 3, "teacher": "blocks"}}, r"modules\.a\.student: not a path; expected text; got 3"),
        ({"a": "blocks"}, r"modules\.a: not a module"),
        ({"a": {"student": "blocks", "teacher": "blocks", "map": [[0, 9]]}}, r"modules\.a\.map\[0\]: teacher layer 9"),
        ({}, "no module is named"),
        ([], "no module is named"),
    ],
)
def test_bad_modules_say_where_and_what(spec, message):
    with pytest.raises(RecipeError, match=message):
        resolve_modules(Net(3), Net(6), spec)


def test_layers_that_cannot_be_mapped_are_placed_in_the_recipe():
    with pytest.raises(ShapeError, match=r"modules\.a: the student has 6 layers, more than the 3.*map by hand"):
        resolve_modules(Net(6), Net(3), {"a": {"student": "blocks", "teacher": "blocks"}})


def test_an_unknown_module_name_without_paths_is_refused_with_the_known_ones(tiny):
    teacher, _ = tiny("clip")
    with pytest.raises(RecipeError, match=r'image_encodr.*Did you mean "image_encoder"'):
        resolve_modules(teacher, teacher, {"image_encodr": {}})


def test_patterns_never_reach_across_a_dot():
    assert expand_path(Net(3), "blocks.*", side="student") == ["blocks.0", "blocks.1", "blocks.2"]
    assert expand_path(Net(2), "blocks.*.0", side="student") == ["blocks.0.0", "blocks.1.0"]


def test_more_than_ten_blocks_keep_their_order():
    assert expand_path(Net(12), "blocks.*", side="student") == [f"blocks.{i}" for i in range(12)]


def test_block_lists_are_the_outermost_stacks_of_one_class(tiny):
    assert list(block_lists(tiny("t5")[0])) == ["encoder.block", "decoder.block"]
    net = Net(2)
    net.mixed = nn.ModuleList([nn.Linear(1, 1), nn.ReLU()])
    assert list(block_lists(net)) == ["blocks", "stages"]


def test_a_pydantic_section_of_a_recipe_is_read_like_a_mapping(tiny):
    from pydantic import BaseModel

    class Section(BaseModel):
        student: str | None = None
        teacher: str | None = None
        map: list[list[int]] | None = None
        mask: str | None = None

    teacher, _ = tiny("clip")
    (text,) = resolve_modules(teacher, teacher, {"text_encoder": Section(map=[[0, 1]])})
    assert (text.mask, len(text.pairs)) == ("attention_mask", 1)


def test_resolving_changes_neither_spec_nor_models(tiny):
    teacher, _ = tiny("clip")
    spec = {"text_encoder": {"map": [[0, 3]]}}
    before = copy.deepcopy(spec)
    resolve_modules(teacher, teacher, spec)
    assert spec == before
    assert not any(module._forward_hooks for module in teacher.modules())
