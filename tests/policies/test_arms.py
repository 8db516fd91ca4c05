import pytest

from potstill.errors import InputError, RecipeError
from potstill.policies import OptimaPolicy, arm_name, make_arms

MODULES = ["image_encoder", "text_decoder", "multimodal_decoder"]


def test_each_module_is_an_arm_by_default():
    assert make_arms(MODULES) == [("image_encoder",), ("text_decoder",), ("multimodal_decoder",)]


def test_all_subsets_are_every_non_empty_set_once_and_end_with_all_modules():
    arms = make_arms(MODULES, "all_subsets")
    assert len(arms) == 7
    assert len({frozenset(arm) for arm in arms}) == 7
    assert arms[:3] == make_arms(MODULES)
    assert arms[-1] == tuple(MODULES)


def test_own_arms_may_be_names_or_lists_of_names():
    assert make_arms(MODULES, ["image_encoder", ["multimodal_decoder", "text_decoder"]]) == [
        ("image_encoder",),
        ("multimodal_decoder", "text_decoder"),
    ]


def test_an_unknown_module_is_refused_with_the_nearest_name_and_its_place():
    with pytest.raises(RecipeError, match=r'arms\[1\]: unknown module "text_decode"\. Did you mean "text_decoder"'):
        make_arms(MODULES, ["image_encoder", ["text_decode"]])


def test_an_unknown_kind_of_arms_is_refused_with_the_nearest_name():
    with pytest.raises(RecipeError, match='Did you mean "all_subsets"'):
        make_arms(MODULES, "all_subset")


def test_subsets_of_too_many_modules_are_refused_with_their_number():
    with pytest.raises(InputError, match="2047 arms"):
        make_arms([f"m{index}" for index in range(11)], "all_subsets")


@pytest.mark.parametrize("modules", [[], ["a", "a"], [""], [("a", "b")], "image_encoder", 3])
def test_make_arms_refuses_what_is_not_a_list_of_different_names(modules):
    with pytest.raises(InputError, match="modules"):
        make_arms(modules)


def test_a_number_stands_for_that_many_nameless_arms():
    policy = OptimaPolicy(3)
    assert policy.arms == [("0",), ("1",), ("2",)]
    assert policy.n_arms == 3


def test_names_and_tuples_of_names_can_be_mixed():
    policy = OptimaPolicy(["image_encoder", ("text_decoder", "multimodal_decoder")])
    assert policy.arms == [("image_encoder",), ("text_decoder", "multimodal_decoder")]
    assert policy.arm_names == ["image_encoder", "text_decoder+multimodal_decoder"]


def test_an_arm_is_named_by_its_modules_joined_with_plus():
    assert arm_name(("a", "b")) == "a+b"


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ([], "no arm to play"),
        (0, "no arm to play"),
        (-1, "no arm to play"),
        (["a", "b", "a"], r"arms\[2\]: duplicate arm.*arms\[0\]"),
        ([("a", "b"), ("b", "a")], r"arms\[1\]: duplicate arm"),
        (["a+b", ("a", "b")], r"arms\[1\]: duplicate arm"),
        (["a", ()], r"arms\[1\]: an arm without modules"),
        ([("a", "a")], "twice in an arm"),
        (["a", ""], "not a module name"),
        (["a", 3], r"arms\[1\]: not a list"),
        ([("a", 3)], "not a module name"),
        ("image_encoder", "not a list"),
        (True, "not a list"),
        (2.0, "not a list"),
    ],
)
def test_arms_that_make_no_sense_are_refused(arms, message):
    with pytest.raises(InputError, match=message):
        OptimaPolicy(arms)
