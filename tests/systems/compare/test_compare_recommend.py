"""What earlier runs suggest, and how often that was right."""

import csv

import pytest

from potstill.cli.show_compare import show_advice
from potstill.errors import InputError
from potstill.systems.compare.recommend import advise, runs_of

pytest.importorskip("sklearn")
GAINS = {"kd_kl": 0.0, "dkd": 0.1, "labels": -0.2}


@pytest.fixture
def runs(tmp_path):
    """``runs(tasks)`` writes a runs.csv in which dkd is always the best."""

    def write(tasks=("a", "b", "c"), name="runs.csv"):
        rows = [
            {
                "recipe": task, "method": method, "budget": "steps-4", "seed": seed, "teacher_score": 0.9,
                "score": 0.5 + gain + 0.001 * seed, "classes": 10 + number, "train_samples": 64, "image_size": 28,
                "teacher_parameters": 5000, "parameters": 1000, "steps": 4,
            }
            for number, task in enumerate(tasks)
            for method, gain in GAINS.items()
            for seed in range(5)
        ]  # fmt: skip
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return tmp_path / name

    return write


def test_the_best_method_elsewhere_is_suggested_and_its_hit_rate_told(runs, toy, digit_teacher, capsys):
    advice = advise([runs()], [toy(teacher=digit_teacher)])
    (found,) = advice["recipes"].values()
    assert [one["method"] for one in found] == ["dkd", "kd_kl", "labels"]
    assert found[0]["ratio"] == pytest.approx(0.602 / 0.9, abs=0.02)
    assert advice["left_out"]["hit"] == 1.0
    show_advice(advice)
    assert "Leaving one of 3 tasks out: the best method was suggested first in 100" in capsys.readouterr().out


def test_runs_of_one_task_cannot_say_how_good_they_are(runs, capsys):
    advice = advise([runs(("a",))])
    assert advice == {"recipes": {}, "left_out": None}
    show_advice(advice)
    assert "cannot be told" in capsys.readouterr().out


def test_files_are_put_together(runs):
    assert len(advise([runs(("a",)), runs(("b",), "more.csv")])["left_out"]["tasks"]) == 2


def test_what_is_no_table_of_runs_is_refused(tmp_path, runs):
    with pytest.raises(InputError, match="cannot be read"):
        runs_of(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"other.csv, line 2: is no run of a comparison"):
        runs_of(tmp_path / "other.csv")
    (tmp_path / "empty.csv").write_text("recipe,score,teacher_score\nx,0.5,\n")
    with pytest.raises(InputError, match="no run with a teacher's score"):
        runs_of(tmp_path / "empty.csv")
