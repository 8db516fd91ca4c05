"""The experiments with a tiny untrained teacher: whether they run, resume and sum up, not what comes out."""

import pytest

pytest.importorskip("torch")


@pytest.fixture
def experiment(script, coca_teacher):
    """``experiment("optima_scenes", ...)`` runs it on the tiny teacher and returns the rows of all runs so far."""

    def run(name, *options):
        tiny = [
            "--teacher",
            coca_teacher,
            "--set",
            "data.concepts=12",
            "--set",
            "student={builder: depth, layers: 1}",
            "--batch-size",
            4,
            "--steps",
            8,
        ]
        small = ["--samples", 8, "--heldout", 8, "--round-steps", 1]
        return script(name, *tiny, *small, *options, out=f"{name}_runs.csv")

    return run


def test_runs_already_there_are_skipped_and_the_rest_is_added(experiment):
    first = experiment("optima_scenes", "--seeds", "0", "--systems", "none,all/3")
    both = experiment("optima_scenes", "--seeds", "0-1", "--systems", "none,all/3", "--shard", "0/1")
    assert both[:2] == first
    assert [(row["system"], row["seed"]) for row in both[2:]] == [("none", "1"), ("all/3", "1")]
    assert all(float(row["L_pred"]) > 0 and row["commit"] for row in both)


def test_the_summary_pairs_every_system_with_optima_and_with_plain_distillation(experiment, script, tmp_path):
    experiment("optima_scenes", "--seeds", "0-1", "--systems", "optima,none,=optima,greedy")
    script("optima_scenes", "--summary", out="optima_scenes_runs.csv")
    rows = (tmp_path / "optima_scenes.csv").read_text(encoding="utf-8").splitlines()
    assert "minus_optima" in rows[0]
    assert "minus_none_ci95" in rows[0]
    table = (tmp_path / "optima_scenes.md").read_text(encoding="utf-8")
    assert [line.split("|")[1].strip() for line in table.splitlines()[4:] if line] == [
        "`optima`", "`none`", "`greedy`", "`=optima`"]  # fmt: skip
    assert "±" in next(line for line in table.splitlines() if line.startswith("| `none`")).split("|")[4]


def test_the_mechanism_run_gives_the_share_of_the_converged_module(experiment, script, tmp_path):
    runs = experiment("optima_mechanism", "--seeds", "0-1", "--systems", "prediction,uniform")
    assert {row["system"] for row in runs} == {"prediction", "uniform"}
    assert all(0 <= float(row["share_image_encoder"]) <= 1 for row in runs)
    script("optima_mechanism", "--summary", out="optima_mechanism_runs.csv")
    summary = (tmp_path / "optima_mechanism.csv").read_text(encoding="utf-8")
    assert "late_share_image_encoder" in summary
    assert "below_even_share" in summary


def test_the_noise_of_the_reward_is_set_against_the_arms(experiment, script, tmp_path):
    runs = experiment("reward_noise", "--seeds", "0", "--steps", 40)
    assert [int(row["round"]) for row in runs] == list(range(2, 41))
    script("reward_noise", "--summary", out="reward_noise_runs.csv")
    rows = [line.split(",") for line in (tmp_path / "reward_noise.csv").read_text(encoding="utf-8").splitlines()]
    found = [dict(zip(rows[0], row)) for row in rows[1:]]
    assert len(found) == 3 * 3  # yardsticks and arms
    for kind in ("prediction", "reference", "per_term"):
        mine = [row for row in found if row["yardstick"] == kind]
        assert sum(float(row["effect"]) for row in mine) == pytest.approx(0, abs=1e-4)
        assert [row["plays_to_tell_from_best"] for row in mine].count("") == 1
        assert all(float(row["noise_sd"]) > 0 for row in mine)
