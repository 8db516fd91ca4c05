"""The command: its table, its exit code, its mistakes."""

import sys

import pytest

from potstill.cli import main

pytestmark = pytest.mark.usefixtures("fake_runs")


@pytest.fixture
def command(monkeypatch, capfd, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["potstill", "compare", *map(str, words), "--out", str(tmp_path / "out")])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capfd.readouterr()

    return run


def test_the_command_prints_a_table_and_where_the_page_is(command, toy, tmp_path):
    code, out, _ = command(toy(), "--methods", "kd_kl, dkd,labels", "--budget", "steps=4", "--seeds", 2, "--jobs", 2)
    assert code == 0
    lines = [line for line in out.splitlines() if line.startswith("│")]
    assert [line.split()[1] for line in lines] == ["dkd", "kd_kl", "labels"]  # the best first
    assert "minus kd_kl" in out
    assert f"Page: {tmp_path / 'out' / 'index.html'}" in out


def test_a_failing_cell_makes_the_exit_code_two(command, toy):
    code, out, err = command(toy(), "--methods", "kd_kl,reverse_kl", "--budget", "steps=4", "--seeds", 1)
    assert code == 2
    assert "failed: toy, reverse_kl, steps-4, seed 0: objectives[0]: does not fit. Try another." in out
    assert "1 runs failed" in err


def test_mistakes_are_one_line(command, toy):
    code, _, err = command(toy(), "--methods", "kd_kll")
    assert code == 2
    assert err.count("\n") == 1
    assert 'Did you mean "kd_kl"?' in err
    code, _, err = command("--methods", "kd_kl")
    assert code == 2
    assert "no recipe was given" in err
