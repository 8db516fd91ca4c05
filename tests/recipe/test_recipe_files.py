"""Reading recipes from files: what is no recipe is refused with its place, and what is written reads back the same."""

import pytest

from potstill.errors import RecipeError
from potstill.recipe import dump_recipe, find_recipe, load_recipe, packaged_recipes
from potstill.recipe.load import read_yaml

GOOD = "version: 1\nobjectives:\n  - {loss: model_loss}\n"


def refused(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert str(path) in str(error.value)
    return error.value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty; expected a mapping of fields"),
        ("# only a comment\n", "is empty"),
        ("- a\n- b\n", "is no recipe; expected a mapping of fields"),
        ("just words", "is no recipe"),
        ("version: 1\nversion: 1\n", 'line 2, column 1: the key "version" stands twice'),
        ("train: {steps: 1, steps: 2}\n", 'line 1, column 19: the key "steps" stands twice'),
        ("1: x\n", "keys are names"),
        ("[a]: x\n", "keys are names"),
        ("version: [1\n", "is not YAML"),
        ("version: 1\n\tname: x\n", "line 2, column 1: is not YAML"),
        ("a: &x 1\nb: *x\n", "YAML aliases are not allowed"),
        ("name: !!bool x\n", "line 1, column 7: YAML tags are not allowed; got tag:yaml.org,2002:bool"),
        ("name: !!python/object/apply:os.getcwd []\n", "YAML tags are not allowed"),
        ("name: !!map [a]\n", "YAML tags are not allowed"),
        ("--- {version: 1}\n--- {version: 1}\n", "is not YAML"),
        ("a: 2024-99-99\n", "holds a value that cannot be read"),
        ("[" * 3000, "nested too deeply"),
        (b"\x00\x01\x02PNG\xff\xfe", "cannot be read"),
        (b"\x93NUMPY\x00\x00", "cannot be read"),
        (b"a: \x01\n", "is not YAML"),
        ("# " + "x" * (1 << 20), "is larger than 1 MiB"),
    ],
)
def test_a_file_that_is_no_recipe_says_why_and_where(tmp_path, content, message):
    assert message in str(refused(tmp_path, content))


def test_a_name_that_is_no_file_suggests_the_packaged_one(tmp_path):
    with pytest.raises(RecipeError) as error:
        load_recipe("optima-scene")
    assert 'Did you mean "optima-scenes"?' in error.value.hint
    for nothing in (tmp_path, tmp_path / "none.yaml", "", "a\0b", "x" * 5000):
        with pytest.raises(RecipeError, match="there is no recipe"):
            load_recipe(nothing)


def test_a_file_wins_over_the_packaged_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kd-scenes").write_text(GOOD + "name: mine\n")
    assert load_recipe("kd-scenes").name == "mine"
    assert find_recipe("optima-scenes") == packaged_recipes()["optima-scenes"]


def test_booleans_and_numbers_are_those_of_yaml_1_2():
    read = read_yaml("a: on\nb: no\nc: true\nd: FALSE\ne: False\nf: 1e-3\ng: 2E5\nh: '1e-3'\n")
    assert read == {"a": "on", "b": "no", "c": True, "d": "FALSE", "e": False, "f": 1e-3, "g": 2e5, "h": "1e-3"}


def test_an_objective_can_be_placed_on_an_output(tmp_path):
    """In YAML 1.1 the key "on" would be the boolean true."""
    (tmp_path / "r.yaml").write_text("version: 1\nobjectives:\n  - loss: kd_kl\n    on: logits\n")
    assert load_recipe(tmp_path / "r.yaml").objectives[0].on == "logits"


@pytest.mark.parametrize("name", sorted(packaged_recipes()))
def test_a_written_recipe_reads_back_equal(tmp_path, name):
    recipe = load_recipe(name, ["train.learning_rate=1e-7", "name='on: ü #x'"])
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "again.yaml") == recipe
    assert load_recipe(recipe) == recipe
    assert load_recipe(recipe.model_dump()) == recipe


def test_stages_replace_what_they_give_and_keep_the_rest():
    recipe = load_recipe(
        {
            "version": 1,
            "teacher": {"model": "x"},
            "objectives": [{"loss": "kd_kl", "on": "logits"}],
            "train": {"steps": 9, "batch_size": 2},
            "stages": [{"name": "a", "teacher": "none", "train": {"steps": 4}}, {"name": "b", "freeze": ["head"]}],
        }
    )
    (_, first), (_, second) = recipe.staged()
    assert (first.teacher, first.train.steps, first.train.batch_size) == (None, 4, 2)
    assert (second.teacher.model, second.train.steps, second.freeze) == ("x", 9, ["head"])
    assert first.stages is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (".nan", "student.seed: does not fit; expected a finite number; got nan"),
        ("[[1, .inf]]", "student.seed[0][1]: does not fit; expected a finite number; got inf"),
        ("9223372036854775808", "a number of at most 64 bits; got 9.22e+18"),
        ("0x" + "f" * 5000, "a number of at most 64 bits; got a far larger one"),
        ("2024-01-01", "expected text (in quotes) or a number; got datetime.date(2024, 1, 1)"),
        ('"\\ud800"', r"student.seed: holds a control character; expected printable text; got '\ud800'"),
        ('"a\\eb"', r"holds a control character; expected printable text; got '\x1b'"),
        ('"a\\Nb"', r"holds a control character; expected printable text; got '\x85'"),
        ('{"a\\0": 1}', "student.seed: keys are names"),
        ("[" * 40 + "]" * 40, "is nested too deeply; expected at most 32 levels"),
    ],
)
def test_what_could_not_be_written_down_and_read_back_is_refused_also_in_open_sections(value, message):
    with pytest.raises(RecipeError) as error:
        load_recipe("kd-scenes", [f"student.seed={value}"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_message_is_one_printable_line_of_bounded_length():
    """Names in it come from a stranger's file: they must not steer the terminal or fill it."""
    with pytest.raises(RecipeError) as error:
        load_recipe({"version": 1, "objectives": [], "a\nb\u202e" + "x" * 9000: 1})
    text = str(error.value)
    assert text.isprintable()
    assert text.startswith(r"a\nb\u202exxx")
    assert len(text) < 2000
