"""Teachers that are not what they claim to be, full disks, terms that are not finite: one message, and resumable."""

import errno
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import potstill.train.resumable as engine
from potstill.errors import InputError, IntegrityError, NumericsError, RecipeError
from potstill.objectives import HiddenObjective
from potstill.recipe import load_recipe
from potstill.run import distill, plan
from potstill.run.build import build_arguments
from potstill.train import load_batch
from potstill.train.checkpoint import list_checkpoints, verify

ROOT = Path(__file__).parents[2]
SHORT = ("train.steps=4", "train.checkpoint_every=2", "evaluate.samples=8", "evaluate.shown=0")


def test_a_teacher_with_another_hash_is_refused_at_its_field(tiny_run):
    with pytest.raises(IntegrityError, match="is not the expected file") as error:
        plan("kd-scenes", tiny_run(f"teacher.sha256={'ab' * 32}"))
    assert error.value.where.startswith("teacher.model")
    assert error.value.expected == f"SHA-256 {'ab' * 32}"
    with pytest.raises(InputError, match="is no SHA-256") as error:
        plan("kd-scenes", tiny_run("teacher.sha256=abc"))
    assert error.value.where == "teacher.sha256"


@pytest.mark.parametrize("kind", ["pickle", "remote code"])
def test_pickles_and_remote_code_are_refused_with_the_field_that_allows_them(tmp_path, coca_teacher, tiny_run, kind):
    folder = Path(shutil.copytree(coca_teacher, tmp_path / "teacher"))
    if kind == "pickle":
        (folder / "model.safetensors").unlink()
        torch.save({}, folder / "pytorch_model.bin")
    else:
        text = '{"architectures": ["Mine"], "model_type": "mine", "auto_map": {"AutoModel": "mine.Mine"}}'
        (folder / "config.json").write_text(text)
    with pytest.raises(RecipeError) as error:
        plan("kd-scenes", tiny_run(f"teacher.model={folder}"))
    assert error.value.where == "teacher.model"
    assert ("teacher.allow_pickle" if kind == "pickle" else "teacher.allow_remote_code") in error.value.hint


def test_a_full_disk_leaves_no_half_checkpoint_and_the_run_goes_on(tmp_path, tiny_run, monkeypatch):
    whole, calls = engine.save_weights, []

    def fill_up(folder, *models, **options):
        calls.append(folder)
        if len(calls) == 2:
            (folder / "student.safetensors").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(folder / "student.safetensors"))
        whole(folder, *models, **options)

    monkeypatch.setattr(engine, "save_weights", fill_up)
    with pytest.raises(IntegrityError, match="the disk is full") as error:
        distill("kd-scenes", tmp_path / "run", overrides=tiny_run(*SHORT))
    assert "--resume" in error.value.hint
    checkpoints = tmp_path / "run" / "checkpoints"
    assert [p.name for p in list_checkpoints(checkpoints)] == ["checkpoint-2"]
    verify(checkpoints / "checkpoint-2")
    run = distill("kd-scenes", tmp_path / "run", overrides=tiny_run(*SHORT), resume=True)
    assert [p.name for p in list_checkpoints(checkpoints)] == ["checkpoint-2", "checkpoint-4"]
    assert run.report.is_file()


def test_a_term_that_is_not_finite_names_step_term_and_module(tmp_path, tiny_run):
    wild = ("train.learning_rate=1e30", "train.max_grad_norm=0", "train.optimizer=sgd", "train.steps=12")
    with pytest.raises(NumericsError) as error:
        distill("kd-scenes", tmp_path / "run", overrides=tiny_run(*SHORT, *wild))
    assert error.value.where.startswith("step ")
    assert 'the term "' in error.value.message
    assert "train.learning_rate" in error.value.hint


def break_hidden_term(monkeypatch, module, calls):
    """Make the hidden term of a module NaN at the given training passes."""
    whole, count = HiddenObjective.total, iter(range(1000))

    def total(self, seen, part):
        value = whole(self, seen, part)
        is_hit = self.module == module and value.requires_grad and next(count) in calls
        return value * float("nan") if is_hit else value

    monkeypatch.setattr(HiddenObjective, "total", total)


OPTIMA = ("policy.round_steps=2", "policy.probe_batches=1", "policy.name=all")


def test_a_hidden_term_that_is_not_finite_names_its_module_and_keeps_the_batch(tmp_path, tiny_run, monkeypatch):
    module = "multimodal_decoder"
    break_hidden_term(monkeypatch, module, {3})  # the rehearsal is pass 0
    with pytest.raises(NumericsError) as error:
        distill("optima-scenes", tmp_path / "run", overrides=tiny_run(*SHORT, *OPTIMA))
    assert error.value.where == f"step 2, module {module}"
    assert error.value.message == f'the term "hidden.{module}" became nan'
    batch, about = load_batch(tmp_path / "run" / "nonfinite" / "step-2.safetensors")
    assert about["module"] == module
    assert batch["sample_id"].tolist() == about["samples"]


def test_a_run_that_skips_says_so_at_the_end_in_the_history_and_in_the_report(tmp_path, tiny_run, monkeypatch):
    break_hidden_term(monkeypatch, "image_encoder", {3})
    notes = []
    run = distill(
        "optima-scenes",
        tmp_path / "run",
        overrides=tiny_run(*SHORT, *OPTIMA, "train.on_nonfinite=skip"),
        progress=lambda event: notes.append(event.get("text", "")),
    )
    assert any(note.startswith("1 optimiser steps were skipped") for note in notes)
    events = [json.loads(line) for line in (run.folder / "history.jsonl").read_text().splitlines()]
    (skip,) = [event for event in events if event["event"] == "skip"]
    assert (run.folder / skip["file"]).is_file()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "1 optimiser steps were skipped" in page
    described = set(re.findall(r"`([^`\n]+)`", (ROOT / "docs" / "run-folder.md").read_text()))
    assert set(skip) | {"nonfinite/"} <= described


@pytest.mark.parametrize(("schedule", "first"), [("constant", 0.25), ("linear", 0.25), ("cosine", 0.25)])
def test_every_schedule_honours_the_warm_up(tmp_path, schedule, first):
    from transformers import get_scheduler

    recipe = load_recipe("kd-scenes", [f"train.schedule={schedule}", "train.warmup_steps=4"])
    arguments = build_arguments(recipe.train, None, seed=0, folder=tmp_path, cpu=True)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    kind, warmup = arguments.lr_scheduler_type, arguments.get_warmup_steps(100)
    schedule = get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=100)
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == [first]
