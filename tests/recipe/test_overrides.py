"""``--set a.b=c`` and ``objectives[1].weight=2``."""

import pytest

from potstill.errors import RecipeError
from potstill.recipe import load_recipe


def test_an_override_reaches_sections_and_list_entries():
    recipe = load_recipe("optima-scenes", ["train.steps=7", "objectives[1].weight=0.5", "train.precision=bf16"])
    assert recipe.train.steps == 7
    assert [o.weight for o in recipe.objectives[:3]] == [1.0, 0.5, 1.0]
    assert recipe.train.precision == "bf16"


def test_values_are_read_as_yaml():
    recipe = load_recipe(
        "optima-scenes",
        ["train.learning_rate=1e-4", "policy=null", "freeze=[image_encoder]", "student={builder: width, width: 8}"],
    )
    assert recipe.train.learning_rate == 1e-4
    assert recipe.policy is None
    assert recipe.freeze == ["image_encoder"]
    assert recipe.student.options == {"width": 8}


def test_later_overrides_win_and_a_section_left_out_is_made():
    recipe = load_recipe("kd-scenes", ["policy.name=uniform", "policy.round_steps=5", "policy.round_steps=6"])
    assert (recipe.policy.name, recipe.policy.round_steps) == ("uniform", 6)


def test_only_the_first_equals_sign_divides():
    assert load_recipe("kd-scenes", ["name=a=b"]).name == "a=b"


def test_the_mapping_given_is_left_as_it_was():
    data = {"version": 1, "objectives": [{"loss": "model_loss"}], "train": {"steps": 3}}
    assert load_recipe(data, ["train.steps=4", "objectives[0].weight=2"]).train.steps == 4
    assert data == {"version": 1, "objectives": [{"loss": "model_loss"}], "train": {"steps": 3}}


@pytest.mark.parametrize(
    "override",
    ["", "=", "=3", "train.steps", "train..steps=3", ".train=3", "objectives[x].weight=1", "objectives[-1].weight=1"],
)
def test_nonsense_is_repeated_with_the_form_that_is_read(override):
    with pytest.raises(RecipeError, match="cannot read the override") as error:
        load_recipe("optima-scenes", [override])
    assert error.value.where == f"--set {override}"
    assert error.value.expected == "field.field=value or list[0].field=value"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "objectives[9].weight=1",
            "--set objectives[9].weight: there is no such entry; expected an index below 5; got 9",
        ),
        ("train.steps[0]=3", "--set train.steps[0]: there is no such entry; expected a list; got 800"),
        ("train[0]=3", "--set train[0]: there is no such entry; expected a list"),
        ("name.x=3", '--set name.x: "x" is looked for in something that is no section; got optima-scenes'),
        ("objectives.weight=1", '--set objectives.weight: "weight" is looked for in something that is no section'),
        ("train.steps=[", "--set train.steps=[, line 1, column 9: is not YAML"),
        ("train.steps=: :", "is not YAML (mapping values are not allowed here)"),
        ("train.steps=*a", "--set train.steps=*a, line 1, column 8: YAML aliases are not allowed"),
        ("name=!!python/object/apply:os.getcwd []", "YAML tags are not allowed"),
    ],
)
def test_an_override_that_leads_nowhere_says_why(override, message):
    with pytest.raises(RecipeError) as error:
        load_recipe("optima-scenes", [override])
    assert message in str(error.value)


def test_an_override_holds_one_value():
    """A line break in it would add further keys, which were dropped in silence."""
    with pytest.raises(RecipeError, match="more than one value"):
        load_recipe("kd-scenes", ["train.steps=1\nseed: 2"])
