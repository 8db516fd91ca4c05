"""A real comparison: a process killed in the middle of a cell, and the same command again."""

import json
import os
import signal
import sys
import threading
import time

import pytest

from potstill.cli import main


@pytest.mark.slow
def test_a_killed_cell_is_told_and_the_same_command_finishes_it(toy, digit_teacher, tmp_path, monkeypatch, capfd):
    from potstill.systems.compare import compare

    recipe, out = toy(teacher=digit_teacher), tmp_path / "out"
    cell = out / "runs" / "toy" / "dkd" / "steps-40" / "seed-0"

    def kill(pid):
        late = time.monotonic() + 300
        while not (cell / "checkpoints" / "checkpoint-2").exists() and time.monotonic() < late:
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)

    def watch(event):
        if event["event"] == "begun":
            threading.Thread(target=kill, args=(event["pid"],)).start()

    done = compare([recipe], ["dkd"], budget="steps=40", out=out, seeds=1, jobs=1, progress=watch)
    assert list(done.failures) == ["toy, dkd, steps-40, seed 0"]
    assert done.failures["toy, dkd, steps-40, seed 0"].startswith("killed by signal 9")
    assert done.rows == []
    assert "No run is finished yet" in done.page.read_text()

    words = ["compare", recipe, "--methods", "dkd", "--budget", "steps=40", "--out", out, "--seeds", 1, "--jobs", 1]
    monkeypatch.setattr(sys, "argv", ["potstill", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert "going on from checkpoint-" in cell.with_name("seed-0.log").read_text()
    steps = [json.loads(line)["step"] for line in (cell / "history.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 41))
    text = (out / "runs.csv").read_text()
    assert text.startswith("recipe,method,budget,seed,score,score.heldout_style,teacher_score,kl,agreement,parameters")
    assert len(text.splitlines()) == 2
    assert "dkd" in capfd.readouterr().out
