"""The recall experiment in a few steps: whether it runs, resumes and sums up, not what comes out."""

import pytest

pytest.importorskip("torch")

TINY = ["--seeds", "0-1", "--heads", "3", "--marks", "1,2", "--teacher-steps", 2]


@pytest.mark.slow
def test_runs_are_resumed_and_summed_up_with_paired_differences(script, tmp_path):
    script("amad_recall", *TINY, "--systems", "kd,one_to_one", out="amad_runs.csv")
    rows = script("amad_recall", *TINY, "--systems", "kd,one_to_one,shd,minilm,amad_mse_0.1", out="amad_runs.csv")
    assert len(rows) == 10
    assert all(row["accuracy_2"] and row["machine"] and row["commit"] for row in rows)
    assert {row["system"] for row in rows if row["map_loss_first"]} == {"one_to_one", "shd", "minilm", "amad_mse_0.1"}
    script("amad_recall", "--summary", out="amad_runs.csv")
    summary = (tmp_path / "amad.csv").read_text(encoding="utf-8").splitlines()
    assert "minus_kd_ci95" in summary[0]
    assert len(summary) == 1 + 5 * 2


@pytest.mark.slow
def test_the_order_of_the_teachers_heads_changes_one_to_one_and_not_amad(script):
    rows = script("amad_recall", *TINY, "--systems", "one_to_one,amad_kl_1", "--shuffled", out="amad_runs.csv")
    losses = {(row["system"], row["seed"], row["order"]): row["map_loss_first"] for row in rows}
    for seed in "01":
        assert losses["amad_kl_1", seed, "given"] == losses["amad_kl_1", seed, "shuffled"]
        assert losses["one_to_one", seed, "given"] != losses["one_to_one", seed, "shuffled"]
