"""A toy recipe on real digits, and a stand-in for the runs where only what is around them is tested."""

import sys
from pathlib import Path

import pytest
import torch
from toy_recipes import toy_recipe

from potstill.recipe import dump_recipe, load_recipe
from potstill.systems.compare.runner import Job


@pytest.fixture
def toy(tmp_path):
    """``toy("name", **fields)`` writes a recipe file and returns its path."""

    def write(name="toy", **changes):
        path = tmp_path / f"{name}.yaml"
        path.write_text(dump_recipe(load_recipe(toy_recipe(**changes))), encoding="utf-8")
        return path

    return write


@pytest.fixture
def fake_runs(monkeypatch):
    """Cells are run by ``fake_distill.py``."""
    script = Path(__file__).with_name("fake_distill.py")
    real = Job.command
    monkeypatch.setattr(Job, "command", lambda job: [sys.executable, str(script), *real(job)[3:]])


@pytest.fixture(scope="session")
def digit_teacher(tmp_path_factory):
    """Folder of a tiny untrained ViT for the digits."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = ViTForImageClassification(
            ViTConfig(image_size=28, patch_size=14, num_channels=1, num_labels=10, **sizes)
        )
    folder = tmp_path_factory.mktemp("digits") / "teacher"
    model.save_pretrained(folder)
    return folder
