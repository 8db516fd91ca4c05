import pytest

torch = pytest.importorskip("torch")


def assert_says_where_it_comes_from(rows):
    assert rows
    assert all(row["machine"] and row["date"] and row["commit"] for row in rows)


def test_the_trainer_and_the_loop_by_hand_do_the_same_work(script):
    rows = script("trainer_overhead", "--steps", 8, "--batch-sizes", 4)
    assert_says_where_it_comes_from(rows)
    assert float(rows[0]["cpu_ratio"]) > 0
    assert float(rows[0]["students_apart"]) < 1e-3


def test_capturing_some_layers_takes_less_memory_than_all(script):
    rows = script("hidden_capture", "--repetitions", 2, "--width", 64, "--rows", 1)
    assert_says_where_it_comes_from(rows)
    assert {(row["model"], row["pass"]) for row in rows} == {
        (m, p) for m in ("BERT", "ViT") for p in ("teacher", "student")
    }
    for row in rows:
        # Allocations are counted, not timed: these hold on any machine.
        assert float(row["memory_ratio"]) < (0.9 if row["pass"] == "teacher" else 1.005)


def test_every_turn_of_a_round_is_timed(script):
    rows = script("probe_overhead", "--steps", 9, "--round-steps", 2, "--probe-batches", 1, "--batch-size", 4)
    assert_says_where_it_comes_from(rows)
    assert int(rows[0]["turns"]) == 5  # before steps 1, 3, 5, 7 and 9
    assert 0 < float(rows[0]["cpu_steady_share"]) < 1


def test_importing_the_package_leaves_torch_alone(script):
    rows = {row["what"]: row for row in script("start_up", "--repetitions", 2)}
    assert_says_where_it_comes_from(rows.values())
    assert rows["import potstill"]["imports_torch"] == "no"
    assert set(rows) == {"import potstill", "potstill --help", "python -c pass"}


def test_fused_losses_and_whole_logits_agree_and_the_rows_say_what_each_took(script):
    sizes = ("--tokens", 64, "--vocabulary", 2000, "--width", 16, "--teacher-width", 8, "--repetitions", 1)
    rows = script("fused_losses", *sizes, "--rounds", 1, "--ways", "fused", "checkpointed")
    assert_says_where_it_comes_from(rows)
    assert [row["way"] for row in rows] == ["full", "fused", "checkpointed"]
    assert all(float(row["cpu_seconds"]) > 0 for row in rows)
