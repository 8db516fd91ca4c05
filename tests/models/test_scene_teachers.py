"""The shipped teachers of scenes: small, whole, and about as good as the tables say."""

import pytest

from potstill.evaluate import evaluate_tasks, main_score
from potstill.models.load import load_model, packaged_models
from potstill.recipe import load_recipe
from potstill.run.build import build_source
from potstill.run.check import check_fit

TEACHERS = {
    "coca-scenes": ("kd-scenes", {"caption": 0.8, "vqa": 0.8}),
    "blip-vqa-scenes": ("amad-blip-vqa", {"vqa": 0.85}),
    "blip-caption-scenes": ("amad-blip-caption", {"caption": 0.9}),
    "vl-t5-scenes": ("amad-vl-t5", {"vqa": 0.8, "caption": 0.8, "translation": 0.75}),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_a_shipped_teacher_can_do_its_tasks(name):
    recipe, least = TEACHERS[name]
    source, model = build_source(load_recipe(recipe)), load_model(name)
    check_fit(model, "teacher", source)
    samples = source.split("test", 40 * len(least))
    scores = evaluate_tasks(model, samples, source.collator)
    assert {task: main_score(scores[task]) for task in least} == {
        task: pytest.approx(1.0, abs=1 - low) for task, low in least.items()
    }


@pytest.mark.parametrize("name", TEACHERS)
def test_a_shipped_teacher_is_small(name):
    assert (packaged_models()[name] / "model.safetensors").stat().st_size < 5e6
