"""What a method does to a recipe, and what is refused before anything runs."""

import pytest
from toy_recipes import toy_recipe

from potstill.errors import InputError, PotstillError
from potstill.recipe import load_recipe
from potstill.systems.compare.methods import Method, apply_method, drop_in_losses, find_method, with_steps

HIDDEN = {"loss": "hidden", "modules": ["encoder"]}


def applied(word, **changes):
    return apply_method(find_method(str(word)), load_recipe(toy_recipe(**changes)))


def test_a_loss_takes_the_place_of_the_loss_and_its_options_go():
    recipe = applied("reverse_kl")
    kd, ce = recipe.objectives
    assert (kd.loss, kd.name, kd.on, kd.weight, kd.options) == ("reverse_kl", "kd", "logits", 2.0, {})
    assert ce == load_recipe(toy_recipe()).objectives[1]


def test_a_loss_in_its_own_place_changes_nothing():
    assert applied("kd_kl") == load_recipe(toy_recipe())


def test_labels_a_loss_needs_come_from_the_label_objective():
    assert applied("dkd").objectives[0].labels == "labels"


def test_fields_beside_the_loss_stay():
    rows = [{"loss": "kd_kl", "on": "logits", "teacher_on": "other", "labels": "text", "shift": True}]
    (section,) = applied("tv_distance", objectives=rows).objectives
    assert (section.teacher_on, section.labels, section.shift) == ("other", "text", True)


def test_every_objective_on_an_output_gets_the_loss():
    rows = [{"loss": "kd_kl", "on": "a"}, {"loss": "kd_kl", "on": "b"}, {"loss": "hint_mse", "on": "c"}]
    assert [s.loss for s in applied("tv_distance", objectives=rows).objectives] == ["tv_distance"] * 3


def test_unknown_labels_are_refused_with_their_place():
    rows = [{"loss": "kd_kl", "on": "logits"}]
    with pytest.raises(InputError, match=r"dkd on toy: objectives\[0\].labels: .*not known"):
        applied("dkd", objectives=rows)


def test_a_recipe_without_a_term_on_outputs_has_no_place_for_a_loss():
    rows = [{"loss": "cross_entropy", "on": "logits", "labels": "labels"}]
    with pytest.raises(InputError, match="no loss to take the place of"):
        applied("dkd", objectives=rows)


def test_labels_keeps_the_label_terms_alone():
    recipe = applied("labels", policy={"name": "uniform"}, objectives=[*toy_recipe()["objectives"], HIDDEN])
    assert [s.loss for s in recipe.objectives] == ["cross_entropy"]
    assert recipe.policy is None
    assert recipe.teacher is not None  # to be compared with


def test_labels_trains_on_the_labels_of_an_output_where_there_is_no_label_term():
    rows = [{"loss": "kd_kl", "on": "logits", "labels": "labels", "shift": True}]
    (section,) = applied("labels", objectives=rows).objectives
    assert (section.loss, section.on, section.labels, section.shift) == ("cross_entropy", "logits", "labels", True)


def test_another_recipe_lays_its_objectives_over_and_the_rest_stays(toy):
    other = toy(
        "mine",
        objectives=[{"loss": "kd_kl", "on": "logits", "teacher": "second", "temperature": 2.0}],
        teachers={"second": {"model": "elsewhere"}},
        data={"source": "emoji"},
        train={"steps": 99, "learning_rate": 0.5},
    )
    method = find_method(str(other))
    assert (method.name, method.kind) == ("mine", "recipe")
    recipe = apply_method(method, load_recipe(toy_recipe()))
    assert [s.teacher for s in recipe.objectives] == ["second"]
    assert recipe.teachers["second"].model == "elsewhere"
    for kept in ("student", "data", "train", "evaluate", "name"):
        assert getattr(recipe, kept) == getattr(load_recipe(toy_recipe()), kept)
    recipe = apply_method(method, load_recipe(toy_recipe(teachers={"second": {"model": "of the base"}})))
    assert recipe.teachers["second"].model == "of the base"


def test_a_packaged_recipe_and_a_row_of_the_catalogue_are_methods():
    assert find_method("teach-emoji-vit") == Method("teach-emoji-vit", "recipe", "teach-emoji-vit")
    assert find_method("optima") == Method("optima", "recipe", "optima-scenes")


def test_stages_of_a_method_share_the_budget_as_they_share_their_own_steps(toy):
    label, kd = toy_recipe()["objectives"][1], toy_recipe()["objectives"][0]
    stages = [
        {"name": "first", "objectives": [label], "train": {"steps": 100, "learning_rate": 0.5}},
        {"name": "second", "objectives": [kd], "train": {"steps": 300}},
    ]
    recipe = apply_method(find_method(str(toy("two", stages=stages))), load_recipe(toy_recipe()))
    one, two = (stage for _, stage in with_steps(recipe, 10).staged())
    assert (one.train.steps, two.train.steps) == (2, 8)
    assert one.train.learning_rate == two.train.learning_rate == load_recipe(toy_recipe()).train.learning_rate
    few = [stage.train.steps for _, stage in with_steps(recipe, 2).staged()]
    assert few == [1, 1]
    with pytest.raises(InputError, match="fewer steps than stages"):
        with_steps(recipe, 1)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("dkdd", 'unknown method "dkdd".*Did you mean "dkd"'),
        ("no-such.yaml", "unknown method"),
        ("minilm_relation", '"minilm_relation" also needs "R"'),
    ],
)
def test_what_is_no_method_is_refused_in_one_line(word, message):
    with pytest.raises(InputError, match=message) as caught:
        find_method(word)
    assert "\n" not in str(caught.value)


def test_a_method_that_does_not_go_with_the_recipe_is_refused_before_anything_runs(toy):
    bad = toy("bad", objectives=[{"loss": "kd_kl", "on": "logits", "teacher": "nobody"}], teachers={})
    with pytest.raises(PotstillError, match=r'bad on toy: objectives\[0\].teacher: unknown teacher "nobody"'):
        apply_method(find_method(str(bad)), load_recipe(toy_recipe()))


def test_a_recipe_with_stages_is_no_base():
    stages = [{"name": "only"}]
    with pytest.raises(InputError, match="has several stages"):
        applied("dkd", stages=stages)


def test_a_schedule_that_only_warms_up_is_refused():
    recipe = load_recipe(toy_recipe(train={"warmup_steps": 20}))
    with pytest.raises(InputError, match="only warm up"):
        with_steps(recipe, 20)
    assert with_steps(recipe, 21).train.steps == 21


def test_every_drop_in_loss_can_stand_in_the_toy_recipe():
    for name in drop_in_losses():
        assert applied(name).objectives[0].loss == name


def test_a_builder_around_another_is_laid_around_the_students_own():
    recipe = applied("lelp", objectives=[{"loss": "kd_kl", "on": "logits"}])
    base = load_recipe(toy_recipe()).student.model_dump()
    assert (recipe.student.builder, recipe.student.model_dump()["of"]) == ("wide_head", base)
    assert recipe.objectives[0].loss == "lelp"
