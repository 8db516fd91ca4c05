"""The shipped teachers of emoji names and digits: small, whole, and as good as the tables say."""

from functools import partial
from pathlib import Path

import pytest
import torch

from potstill.data.digits_source import build_digits
from potstill.data.emoji_source import build_emoji
from potstill.evaluate import evaluate_tasks
from potstill.models.load import load_model, packaged_models
from potstill.run.check import check_fit

TEACHERS = {
    "emoji-vit": (build_emoji, 0.95),
    "emoji-cnn": (build_emoji, 0.95),
    "digits-cnn": (build_digits, 0.95),
    "digits-parity": (partial(build_digits, target="binary"), 0.93),
    "digits-weak": (build_digits, 0.5),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_a_shipped_teacher_names_what_it_is_shown(name):
    build, least = TEACHERS[name]
    source, model = build(), load_model(name)
    check_fit(model, "teacher", source)
    scores = evaluate_tasks(model, source.split("test", 400), source.collator)["main"]
    assert scores["accuracy"] > least
    assert model.config.id2label == source.model_fields["id2label"]


@pytest.fixture
def readings(monkeypatch):
    """The benchmark's linear readings of frozen tokens."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import feature_teachers

    return feature_teachers


def test_the_contrastive_teacher_tells_drawings_apart_without_having_seen_a_name(readings):
    model = load_model("emoji-contrastive")
    check_fit(model, "teacher", build_emoji())
    assert readings.names(model, build_emoji(concepts=40), 200, known=400) > 0.4


def test_the_masked_image_teacher_knows_the_colours_of_patches_it_does_not_see(readings):
    assert readings.patches(load_model("emoji-mim"), build_emoji(), 100) > 0.75


@pytest.mark.parametrize("name", [*TEACHERS, "emoji-contrastive", "emoji-mim"])
def test_a_shipped_teacher_is_small_and_comes_back_in_single_precision(name):
    folder = packaged_models()[name]
    assert (folder / "model.safetensors").stat().st_size < 2.5e6
    tensors = load_model(name).state_dict().values()
    assert {value.dtype for value in tensors if value.is_floating_point()} == {torch.float32}
