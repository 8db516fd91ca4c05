"""Which parts of a student are split on their own; the rest of sharding needs processes: test_rank_equality.py."""

from rank_cases import Net
from torch import nn
from toy_models import Block, Toy

from potstill.train.sharding import _blocks, _give_memory


def paths(student, patterns=None):
    names = {id(module): name for name, module in student.named_modules()}
    return [names[id(module)] for module in _blocks(student, patterns)]


def test_blocks_are_the_entries_of_module_lists_or_what_the_model_or_the_user_names():
    assert paths(Net(4, 1)) == ["side.blocks.0", "text.blocks.0", "image.blocks.0"]
    assert paths(Net(4, 2), ["image.blocks.0", "image.blocks.1"]) == ["image.blocks.1", "image.blocks.0"]
    student = Toy(4, 1)
    student._no_split_modules = ["Stack"]
    assert paths(student) == ["text", "image"]


def test_a_block_that_shares_a_parameter_with_the_rest_is_not_split_on_its_own():
    student = nn.Module()
    student.blocks = nn.ModuleList([Block(4, 0.0), Block(4, 0.0)])
    student.head = nn.Linear(4, 4)
    student.head.weight = student.blocks[1].linear.weight
    assert paths(student) == ["blocks.0"]


def test_tied_parameters_stay_tied_when_they_get_memory():
    student = nn.ModuleDict({"a": nn.Linear(2, 2, device="meta"), "b": nn.Linear(2, 2, device="meta")})
    student["b"].weight = student["a"].weight
    _give_memory(student)
    assert student["b"].weight is student["a"].weight
    assert not any(p.is_meta for p in student.parameters())
