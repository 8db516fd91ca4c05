import pytest

pytest.importorskip("torch")


@pytest.mark.slow
def test_dac_kl_is_compared_with_kl_and_a_run_is_not_repeated(script, tmp_path):
    options = ["--steps", 3, "--teacher-steps", 3, "--batch-size", 2, "--held-out", 4, "--work", tmp_path / "work"]
    methods = ["kl", "dac-learned+span+scrg"]
    rows = script("dac_kl_small", *options, "--seeds", 0, "--methods", *methods, out="d_runs.csv")
    again = script("dac_kl_small", *options, "--seeds", 0, "--methods", *methods, out="d_runs.csv")
    assert [row["system"] for row in rows] == methods
    assert again == rows
    assert all(float(row["nll"]) > 0 and float(row["rollout_nll"]) > 0 and row["commit"] for row in rows)
    assert 0 < float(rows[1]["coverage"]) <= 1


@pytest.mark.slow
def test_ddk_is_compared_with_fixed_mixtures(script, tmp_path):
    options = ["--steps", 20, "--teacher-steps", 3, "--batch-size", 2, "--scale", 0.01, "--work", tmp_path / "work"]
    rows = script("ddk_small", *options, "--seeds", 0, "--mixtures", "by-size", "ddk", out="d_runs.csv")
    assert [row["system"] for row in rows] == ["by-size", "ddk"]
    for row in rows:
        found = [float(value) for name, value in row.items() if name.startswith("ratio_")]
        assert len(found) == 4
        assert max(found) == float(row["worst_ratio"])


@pytest.mark.slow
def test_a_method_that_learnt_from_fewer_tokens_is_given_more_steps(script, tmp_path):
    options = ["--start-steps", 2, "--steps", 4, "--samples", 4, "--seeds", 0, "--methods", "kd", "seqkd"]
    options += ["--work", tmp_path / "work"]
    kd, seqkd = script("text_methods", *options, out="d_runs.csv")
    assert kd["budget"] == seqkd["budget"] == "4 steps"
    assert int(seqkd["tokens"]) < 0.9 * int(kd["tokens"])
    *both, more = script("text_methods", *options, "--equal-tokens", out="d_runs.csv")
    assert both == [kd, seqkd]  # kd has its tokens already
    assert (more["system"], more["budget"]) == ("seqkd", "tokens of 4 steps")
    share = int(seqkd["tokens"]) / int(kd["tokens"])
    assert int(more["steps"]) == round(4 / share)
