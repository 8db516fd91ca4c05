"""Mutated recipes and overrides: exit code 0, or 2 with one message; quickly, in little memory, and nothing written.

Three samples of what ``tools/fuzz_recipes.py`` makes without end; a seed that found something belongs here.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from fuzz_recipes import Judge, little_memory
from recipe_mutations import Case, dump, make_bases, make_cases


@pytest.fixture(scope="module")
def bases(coca_teacher):
    return make_bases(
        *(f"teacher.model={coca_teacher}", "data.concepts=12", "student={builder: depth, layers: 1}"),
        *("train.batch_size=6", "train.threads=1"),
    )


@pytest.fixture
def judge(tmp_path, monkeypatch, request):
    """Feeds one case to the command line in this process."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delenv("POTSTILL_TRACEBACK", raising=False)
    import potstill.run  # noqa: F401 - its own needs are no part of a case's memory

    with little_memory():
        yield Judge(tmp_path, request.param, seconds=60)


@pytest.mark.parametrize(("judge", "number", "seed"), [("door", 560, 0), ("plan", 180, 1)], indirect=["judge"])
def test_every_mutated_recipe_is_read_or_refused_in_one_line(judge, bases, number, seed):
    offenders = {case.name: wrong for case in make_cases(seed, number, bases) if (wrong := judge(case))}
    assert offenders == {}
    assert sum(judge.codes.values()) >= number
    assert judge.codes[0] > 3  # some mutations are harmless, or nothing was tested behind the door


@pytest.mark.parametrize("judge", ["plan"], indirect=True)
def test_sizes_that_no_machine_has_are_refused_before_they_are_asked_for(judge, bases):
    for override, where in {
        "train.batch_size=1000000000000": "train.batch_size",
        "data.image_size=10000000": "data.image_size",
        "train.threads=1000000": "train.threads",
        "student={builder: depth, layers: 1000000000}": "student.layers",
        "student={builder: width, width: 1000000000}": "student.width",
        "student={builder: config, overrides: {text_layers: 1000000000}}": "student.overrides.text_layers",
        "student={builder: config, overrides: {text_width: 1048576, text_heads: 1}}": "student.overrides",
        "student={builder: new, family: bert, fields: {num_labels: 1000000000}}": "student.fields.num_labels",
        "student={builder: new, family: bert, fields: {hidden_size: 12000000}}": "student.fields",
    }.items():
        case = Case(override, dump(bases["optima-scenes"]), [override])
        assert judge(case) is None, override
        assert judge.messages[-1].startswith(f"potstill: {where}: "), judge.messages[-1]


@pytest.mark.parametrize("judge", ["door"], indirect=True)
def test_the_judge_sees_what_is_written_and_what_is_no_single_message(judge, bases, monkeypatch, tmp_path_factory):
    """Else the tests above could not fail."""
    outside = tmp_path_factory.mktemp("outside") / "owned"
    good = dump(bases["kd-scenes"])
    assert judge(Case("good", good)) is None

    def owned(*args, **kwargs):
        outside.touch()
        raise ValueError("two\nlines")

    monkeypatch.setattr("potstill.recipe.load_recipe", owned)
    assert "owned" in judge(Case("writes", good))
    monkeypatch.setattr("potstill.recipe.load_recipe", lambda *a, **k: {}["no such key"])
    assert "exit code 1" in judge(Case("a fault", good))
