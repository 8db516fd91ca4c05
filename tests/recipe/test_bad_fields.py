"""A recipe with a mistake is refused at the field that is wrong, with what was expected and what came."""

import pytest
import yaml

from potstill.errors import InputError, RecipeError
from potstill.recipe import load_recipe, validate
from potstill.run.build import build_policy, build_source
from potstill.run.check import check_names

KD = {"loss": "kd_kl", "on": "logits"}
GIVEN = {"version": 1, "teacher": {"model": "coca-scenes"}, "objectives": [KD, {"loss": "hidden"}]}


def refused(change, check=load_recipe):
    """The error of the packaged recipe with some overrides."""
    with pytest.raises(InputError) as error:
        check(load_recipe("optima-scenes", [change] if isinstance(change, str) else change))
    assert error.value.exit_code == 2
    return error.value


@pytest.mark.parametrize(
    ("change", "where", "near"),
    [
        ("trian.steps=3", "trian", "train"),
        ("train.stps=3", "train.stps", "steps"),
        ("teacher.modle=x", "teacher.modle", "model"),
        ("evaluate.sample=3", "evaluate.sample", "samples"),
        ("modules={image: {studnt: x}}", "modules.image.studnt", "student"),
        ("stages=[{name: a, train: {stps: 3}}]", "stages[0].train.stps", "steps"),
        ("stages=[{name: a, freze: []}]", "stages[0].freze", "freeze"),
    ],
)
def test_an_unknown_key_is_placed_and_the_nearest_is_named(change, where, near):
    error = refused(change)
    assert error.where == where
    assert f'Did you mean "{near}"?' in error.hint


@pytest.mark.parametrize(
    ("change", "expected", "got"),
    [
        ("train.steps=many", "a valid integer", "'many'"),
        ("train.steps=true", "a valid integer", "True"),
        ("train.steps=1.5", "a valid integer", "1.5"),
        ('train.learning_rate="1e-3"', "a valid number", "'1e-3'"),
        ("train.learning_rate=true", "a valid number", "True"),
        ("train.gradient_checkpointing=1", "a valid boolean", "1"),
        ("train.gradient_checkpointing=yes", "a valid boolean", "'yes'"),
        ("name=3", "a valid string", "3"),
        ("freeze=image_encoder", "a valid list", "'image_encoder'"),
        ("modules={image: {map: [[0, x]]}}", "a valid integer", "'x'"),
        ("policy=optima", "a section (a mapping of fields)", "'optima'"),
        ("teacher=coca-scenes", "a section (a mapping of fields)", "'coca-scenes'"),
        ("train=null", "a section (a mapping of fields)", "None"),
        ("objectives={}", "a valid list", "{}"),
        ("objectives[4].modules=image", "a valid list or 'all'", "'image'"),
        ("train.schedule=step", "'linear', 'cosine' or 'constant'", "'step'"),
    ],
)
def test_a_value_of_the_wrong_type_says_what_fits(change, expected, got):
    error = refused(change)
    assert change.startswith(error.where.partition(".image")[0])
    assert (error.expected, error.got) == (expected, got)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("train.steps=0", "greater than or equal to 1"),
        ("train.learning_rate=0", "greater than 0"),
        ("train.learning_rate=.inf", "a finite number"),
        ("train.learning_rate=.nan", "a finite number"),
        ("train.betas=[0.9]", "at least 2 items"),
        ("seed=-1", "greater than or equal to 0"),
        ("seed=4294967296", "less than 4294967296"),
        ("objectives[0].weight=-1", "greater than or equal to 0 or 'auto' or 'gradmag'"),
        ("objectives[0].weight=.inf", "a finite number"),
        ("objectives=[]", "at least 1 item"),
        ("stages=[]", "at least 1 item"),
        ("policy.round_steps=0", "greater than or equal to 1"),
        ("policy.reward_clip=0", "greater than 0"),
        ("evaluate.samples=0", "greater than or equal to 1"),
        ("version=2", "1"),
    ],
)
def test_a_value_out_of_range_says_the_range(change, expected):
    error = refused(change)
    assert error.where == change.partition("=")[0]
    assert error.expected == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.betas=[0.9, 1.5]", r"train.betas: both must lie in \[0, 1\); got \[0.9, 1.5\]"),
        ("stages=[{name: a}, {name: a}]", "stages: two stages have the same name"),
        ("stages=[{name: ../up}]", r"stages\[0\].name: does not fit"),
    ],
)
def test_a_rule_between_values_is_told_in_words(change, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("optima-scenes", [change])


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ({**GIVEN, "teacher": {}}, "teacher.model"),
        ({"version": 1}, "objectives"),
        ({"objectives": [KD]}, "version"),
        ({**GIVEN, "objectives": [{"on": "logits"}]}, "objectives[0].loss"),
        ({**GIVEN, "stages": [{}]}, "stages[0].name"),
    ],
)
def test_a_missing_field_is_named(data, where):
    with pytest.raises(RecipeError, match="is missing") as error:
        validate(data)
    assert error.value.where == where


def test_of_several_mistakes_the_first_is_shown_and_the_others_counted():
    error = refused(["train.stps=3", "train.batch_size=0"])
    assert error.where == "train.stps"
    assert "(1 more after it)" in error.message


@pytest.mark.parametrize(
    ("change", "where", "near"),
    [
        ("objectives[0].loss=kd_lk", "objectives[0].loss", "kd_kl"),
        ("objectives[0].temprature=3", "objectives[0].temprature", "temperature"),
        ("policy.name=optmia", "policy.name", "optima"),
        ("policy.gama=0.9", "policy.gama", "gamma"),
        ("student.builder=dept", "student.builder", "depth"),
        ("student.layer=2", "student.layer", "layers"),
    ],
)
def test_an_unknown_name_or_option_is_refused_before_anything_is_loaded(change, where, near):
    error = refused(change, check_names)
    assert error.where == where
    assert f'Did you mean "{near}"?' in error.hint


@pytest.mark.parametrize(
    ("change", "where", "near"),
    [("data.source=scene", "data.source", "scenes"), ("data.concept=3", "data.concept", "concepts")],
)
def test_an_unknown_data_source_or_option_is_refused(change, where, near):
    error = refused(change, build_source)
    assert error.where == where
    assert f'Did you mean "{near}"?' in error.hint


@pytest.mark.parametrize("change", ["data.concepts=-3", "data.tasks=[vqa, poetry]", "data.image_size=x"])
def test_an_option_that_the_data_source_refuses_is_placed(change):
    assert refused(change, build_source).where == change.partition("=")[0]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ("policy.gamma=2", "policy.gamma"),
        ("policy.warmup_rounds=x", "policy.warmup_rounds"),
        ("policy.arms=[[image, txt]]", "policy.arms[0]"),
    ],
)
def test_an_option_that_the_policy_refuses_is_placed(change, where):
    assert refused(change, lambda recipe: build_policy(recipe.policy, ["image", "text"], 0)).where == where


def test_a_loss_says_which_field_it_needs():
    assert refused("objectives[0].on=null", check_names).where == "objectives[0].on"
    both = ["objectives[0].loss=dkd", "objectives[0].labels=null"]
    assert refused(both, check_names).where == "objectives[0].labels"
    assert refused("objectives[0].loss=readout", check_names).where == "objectives[0].tap"


def test_a_policy_without_a_hidden_objective_has_nothing_to_choose():
    error = refused("objectives=[{loss: kd_kl, on: caption_logits}]", check_names)
    assert error.where == "policy"
    assert "hidden" in error.hint


def test_a_comparison_without_a_teacher_is_refused():
    error = refused("teacher=null", check_names)
    assert error.where == "objectives[0].loss"
    assert "cross_entropy" in error.hint
    labels = "objectives=[{loss: cross_entropy, on: task_logits.vqa, labels: vqa_labels}]"
    assert refused(["teacher=null", "policy=null", labels], check_names).where == "student.builder"


def test_no_message_shows_a_traceback_or_pydantic():
    text = str(refused("train.steps=many"))
    assert "\n" not in text
    assert "pydantic" not in text.lower()
    assert yaml.safe_load("a: 1")  # the loader of recipes leaves PyYAML's own as it was
    assert yaml.safe_load("a: on") == {"a": True}


@pytest.mark.parametrize("value", ["true", "false"])
def test_a_boolean_is_no_version(value):
    error = refused(f"version={value}")
    assert (error.where, error.message) == ("version", "is the number 1, not true or false")


@pytest.mark.parametrize("digits", ["12" * 32, "0" + "12" * 31 + "3", "12e" + "3" * 61])
def test_a_hash_that_yaml_reads_as_a_number_is_to_be_quoted(digits):
    error = refused(f"teacher.sha256={digits}")
    assert error.where == "teacher.sha256"
    assert "quotes" in error.hint
    assert load_recipe("kd-scenes", [f'teacher.sha256="{digits}"']).teacher.sha256 == digits
