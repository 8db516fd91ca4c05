"""Runs on pools of pictures: every epoch is augmented anew, and an interrupted run goes on exactly."""

import pytest
import torch
from safetensors.torch import load_file

from potstill.run import distill

TINY = [
    *("data.pool=24", "data.concepts=12", "data.image_size=16", "train.batch_size=8", "train.checkpoint_every=1"),
    *("train.warmup_steps=0", "train.threads=1", "train.log_every=1", "evaluate.samples=8", "evaluate.shown=2"),
    *("student.fields={embedding_size: 8, hidden_sizes: [8, 16], depths: [1, 1], layer_type: basic}",),
]


class CrashError(Exception):
    pass


def killer(step):
    def progress(event):
        if event["event"] == "step" and event["step"] == step:
            raise CrashError

    return progress


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The student of a run of seven steps: two epochs of three, and one more step."""
    folder = tmp_path_factory.mktemp("pool") / "straight"
    distill("teach-emoji-cnn", folder, overrides=[*TINY, "data.augment=strong", "train.steps=7"])
    return folder


@pytest.mark.parametrize("step", [4, 6], ids=["at the end of an epoch", "inside an epoch"])
def test_a_run_on_an_augmented_pool_resumes_exactly(straight, tmp_path, step):
    given = [*TINY, "data.augment=strong", "train.steps=7"]
    with pytest.raises(CrashError):
        distill("teach-emoji-cnn", tmp_path / "run", overrides=given, progress=killer(step))
    distill(tmp_path / "run" / "recipe.yaml", tmp_path / "run", resume=True)
    one, other = (load_file(folder / "student" / "model.safetensors") for folder in (straight, tmp_path / "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)
