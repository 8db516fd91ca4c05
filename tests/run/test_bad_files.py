"""Teachers that are not what they claim to be, full disks, terms that are not finite: one message, and resumable."""

import errno
import shutil
from pathlib import Path

import pytest
import torch

import potstill.train.trainer as engine
from potstill.errors import InputError, IntegrityError, NumericsError, RecipeError
from potstill.recipe import load_recipe
from potstill.run import distill, plan
from potstill.run.build import build_arguments
from potstill.train.checkpoint import list_checkpoints, verify

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

    def fill_up(folder, student, parts):
        calls.append(folder)
        if len(calls) == 2:
            (folder / "student.safetensors").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(folder / "student.safetensors"))
        whole(folder, student, parts)

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
