"""The two long tests of resume and memory, in short."""

import pytest

pytest.importorskip("torch")


@pytest.mark.slow
def test_killed_runs_end_like_the_one_left_alone(script, tmp_path):
    rows = script("kill_resume", "--kills", 2, "--steps", 12, "--seed", 2, out="kills_runs.csv")
    assert len(rows) == 2
    assert {row["verdict"] for row in rows} == {"ok"}
    assert {row["run_ended"] for row in rows} == {"identical"}
    assert all(row["on_disk"] and row["machine"] and row["commit"] for row in rows)
    assert "kills_wrong" in (tmp_path / "kills.csv").read_text(encoding="utf-8")


def test_nothing_but_memory_still_filling_grows_in_a_few_hundred_rounds(script):
    """Too short for memory to settle, so that bound is left out; files, threads, objects and history are judged."""
    (row,) = script("soak", "--rounds", 300, "--checkpoint-every", 100, "--most-bytes", 1e9, "--most-slower", 100)
    assert row["verdict"] == "flat"
    assert float(row["objects_a_round"]) < 2
    assert int(row["trainer_state_json_bytes"]) < 5000
