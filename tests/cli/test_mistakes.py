"""A user's mistake is one message on stderr and exit code 2; an interruption is 130; a fault of ours is 1."""

import errno
import os
import signal
import sys

import pytest

MISTAKES = {
    "an unknown command": (("distil", "kd-scenes"), "No such command"),
    "an unknown option": (("plan", "kd-scenes", "--frob"), "No such option"),
    "a missing argument": (("plan",), "Missing argument"),
    "a missing option": (("distill", "kd-scenes"), "--out"),
    "no number": (("evaluate", "x", "--samples", "many"), "valid int"),
    "too small a number": (("demo", "--steps", "3"), "20"),
    "an unknown recipe": (("plan", "kd-scene"), 'Did you mean "kd-scenes"?'),
    "an unknown field": (("plan", "kd-scenes", "--set", "train.stps=3"), 'train.stps: there is no such field. Did you'),
    "a wrong type": (("config", "show", "kd-scenes", "--set", "train.steps=many"), "train.steps: does not fit"),
    "an unknown loss": (("plan", "kd-scenes", "--set", "objectives[0].loss=kd"), "objectives[0].loss: unknown loss"),
    "an unknown data source": (("plan", "kd-scenes", "--set", "data.source=imagenet"), "data.source"),
    "an unknown teacher": (("plan", "kd-scenes", "--set", "teacher.model=./nowhere"), "teacher.model"),
    "an unknown model": (("inspect", "model", "./nowhere"), "model: there is no such folder"),
    "an unknown model to measure": (("evaluate", "./nowhere"), "model: there is no such folder"),
    "an unknown task": (("inspect", "data", "--task", "poetry"), "poetry"),
    "another data source": (("inspect", "data", "files"), "has no contact sheet"),
    "an unknown run": (("report", "./nowhere"), "nowhere"),
    "no run to resume": (("distill", "kd-scenes", "--out", "./nowhere", "--resume"), "no run to resume"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_message_and_exit_code_2(potstill, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    arguments, message = MISTAKES[name]
    got = potstill(*arguments)
    assert got.code == 2
    assert message in got.err
    assert got.out == ""
    assert not list(tmp_path.iterdir())


def test_a_mistake_found_while_preparing_leaves_no_folder(potstill, sets, tmp_path):
    got = potstill("distill", "kd-scenes", "--out", tmp_path / "run", *sets("objectives[1].on=task_logits.vqq"))
    assert got.code == 2
    assert got.err.startswith("potstill: objectives[1].on: ")
    assert 'Did you mean "vqa"?' in got.err
    assert not (tmp_path / "run").exists()


def test_the_contact_sheet_needs_a_place_to_go(potstill, tmp_path):
    got = potstill("inspect", "data", "--n", 4, "--out", tmp_path / "no" / "sheet.png")
    assert got.code == 2
    assert "sheet.png" in got.err
    got = potstill("inspect", "data", "--n", 4, "--out", tmp_path / "sheet.xyz")
    assert got.code == 2
    assert "sheet.xyz" in got.err


def test_an_interrupted_run_exits_with_130_and_goes_on(potstill, sets, tmp_path, monkeypatch):
    from potstill.run.watch import ReportSteps

    shown = ReportSteps.on_step_end

    def stop_at_three(self, args, state, control, **kwargs):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return shown(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ReportSteps, "on_step_end", stop_at_three)
        got = potstill("distill", "kd-scenes", "--out", tmp_path / "run", *sets())
    assert got.code == 130
    assert "stopped at step 3; a checkpoint was written" in got.err
    assert "--resume" in got.err
    again = potstill("distill", "kd-scenes", "--out", tmp_path / "run", "--resume", *sets())
    assert again.code == 0
    assert "going on from checkpoint-3" in again.out
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()


def test_ctrl_c_before_training_exits_with_130(potstill, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("potstill.run.plan", interrupt)
    got = potstill("plan", "kd-scenes")
    assert (got.code, got.err.strip()) == (130, "potstill: interrupted")


def test_a_fault_of_ours_says_so_and_how_to_see_where(potstill, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyError("oops")

    monkeypatch.setattr("potstill.run.plan", fail)
    got = potstill("plan", "kd-scenes")
    assert got.code == 1
    assert "a fault of Potstill, not yours: KeyError: 'oops'" in got.err
    assert "POTSTILL_TRACEBACK=1" in got.err


def test_the_module_is_the_command(potstill, monkeypatch):
    import runpy

    monkeypatch.setattr(sys, "argv", ["potstill", "plan", "kd-scene"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("potstill", run_name="__main__")
    assert stop.value.code == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_disk_that_refuses_outside_a_run_is_no_fault_of_ours(potstill, monkeypatch, number):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number), "/somewhere/file")

    monkeypatch.setattr("potstill.run.plan", refuse)
    got = potstill("plan", "kd-scenes")
    assert got.code == 2
    assert got.err.startswith("potstill: /somewhere/file: ")
    assert os.strerror(number) in got.err


class Full:
    """A standard output on a full disk."""

    def write(self, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self):
        """Nothing was kept."""


def test_output_that_cannot_be_written_is_said(potstill, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Full())
    got = potstill("config", "list")
    assert got.code == 2
    assert got.err.startswith("potstill: output: the disk is full")


def test_a_name_that_looks_like_markup_is_shown_as_it_is(potstill, sets):
    got = potstill("plan", "kd-scenes", *sets("name='[/b] [red]x'", "objectives[0].name='[/c]'"))
    assert (got.code, got.err) == (0, "")
    assert "[/c]" in got.out
