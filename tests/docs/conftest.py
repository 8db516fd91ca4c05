"""A stand-in for the shipped teacher, so small that the documents' examples run in seconds; one finished run of it."""

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("train.steps=4", "train.batch_size=8", "policy.round_steps=2", "evaluate.samples=24", "evaluate.batch_size=24")


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """A folder of packaged models with an untrained "coca-scenes": as wide as the real one, but shallow."""
    from potstill.data.scene_source import build_scenes
    from potstill.models.coca import CocaConfig, CocaModel
    from potstill.models.load import WEIGHTS, write_manifest

    weights = tmp_path_factory.mktemp("weights")
    sizes = {f"{side}_{what}": n for side in ("image", "text") for what, n in (("width", 128), ("heads", 4))}
    depths = {"image_layers": 1, "text_layers": 1, "multimodal_layers": 1}
    fields = {**build_scenes().model_fields, **sizes, **depths, "caption_queries": 4, "embed_dim": 8}
    CocaModel(CocaConfig.small_scenes(**{**fields, "max_text_length": 40})).save_pretrained(weights / "coca-scenes")
    write_manifest(weights / "coca-scenes")
    shutil.copytree(WEIGHTS / "texts-byte-lm", weights / "texts-byte-lm")  # small enough as it is
    return weights


@pytest.fixture
def tiny_teacher(stand_in, monkeypatch):
    """Let the name "coca-scenes" mean the stand-in."""
    monkeypatch.setattr("potstill.models.load.WEIGHTS", stand_in)


@pytest.fixture(scope="session")
def finished_run(stand_in, tmp_path_factory):
    """A run folder as ``distill`` leaves it."""
    import potstill

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("potstill.models.load.WEIGHTS", stand_in)
        out = tmp_path_factory.mktemp("run") / "first"
        overrides = [*SMALL, "train.checkpoint_every=2", "train.log_every=2", "evaluate.shown=4"]
        return potstill.distill("optima-scenes", out, overrides=overrides).folder
