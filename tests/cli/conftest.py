"""Runs ``potstill`` in this process as a shell would: arguments in; exit code, output and errors out."""

import sys
from types import SimpleNamespace

import pytest

from potstill.cli import main


@pytest.fixture
def potstill(monkeypatch, capfd):
    """``potstill("plan", "kd-scenes") -> .code, .out, .err``."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("POTSTILL_TRACEBACK", raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["potstill", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return SimpleNamespace(code=code, out=out, err=err)

    return run


@pytest.fixture
def sets(tiny_run):
    """``--set`` arguments that make the packaged recipes tiny."""

    def arguments(*more):
        tiny = ("train.steps=4", "train.checkpoint_every=2", "evaluate.samples=8", "evaluate.shown=1")
        return [word for override in tiny_run(*tiny, *more) for word in ("--set", override)]

    return arguments
