import base64
import io
import json

import pytest
import torch
from PIL import Image

from potstill.errors import InputError
from potstill.evaluate import sample_answers
from potstill.evaluate.samples import png_uri


def _open(uri):
    kind, _, data = uri.partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.fixture(scope="module")
def shown(scenes):
    models = {"teacher": scenes.model(1), "student": scenes.model(2)}
    return sample_answers(models, scenes.data, scenes.collator, n=10, looked_at=48)


def test_samples_vary_over_the_tasks_and_carry_both_answers(shown):
    assert len(shown) == 10
    assert json.dumps(shown)
    counts = {task: sum(s["task"] == task for s in shown) for task in ("caption", "entailment", "nlvr2", "vqa")}
    assert sum(counts.values()) == 10
    assert min(counts.values()) >= 2
    for sample in shown:
        assert set(sample) == {"task", "images", "text", "truth", "answers"}
        assert list(sample["answers"]) == ["teacher", "student"]


def test_texts_pictures_and_truths_are_those_of_the_dataset(scenes, shown):
    known = {(s["task"], s["text"] if s["task"] != "caption" else None, s["truth"]) for s in scenes.data}
    for sample in shown:
        assert (sample["task"], sample["text"], sample["truth"]) in known
        assert len(sample["images"]) == (2 if sample["task"] == "nlvr2" else 1)
        assert _open(sample["images"][0]).size == (96, 96)
        if sample["task"] != "caption":
            assert sample["answers"]["student"] in scenes.data.task_labels[sample["task"]]


def test_the_choice_is_the_same_every_time(scenes, shown):
    models = {"teacher": scenes.model(1), "student": scenes.model(2)}
    assert sample_answers(models, scenes.data, scenes.collator, n=10, looked_at=48) == shown


def test_mistakes_of_the_student_are_shown_beside_what_it_gets_right(toy, make_table):
    data = [{"task": "vqa", "kind": "what", "label": 0, "index": i, "language": "en"} for i in range(40)]
    rarely_wrong = [1 if i in (7, 31) else 0 for i in range(40)]
    models = {
        "teacher": toy.model({"vqa": make_table([0] * 40)}),
        "student": toy.model({"vqa": make_table(rarely_wrong)}),
    }
    shown = sample_answers(models, data, toy.collate, n=6)
    assert [s["answers"]["student"] for s in shown] == ["green", "red", "green", "red", "red", "red"]
    assert {s["answers"]["teacher"] for s in shown} == {"red"} == {s["truth"] for s in shown}
    assert shown[0]["images"] == []
    assert shown[0]["text"] is None


def test_a_student_without_a_head_still_leaves_the_teachers_answer(toy, make_table):
    models = {"teacher": toy.model({"vqa": make_table([0] * 8)}), "student": toy.model({})}
    shown = sample_answers(models, toy.data, toy.collate, n=3)
    assert len(shown) == 3
    assert all(list(s["answers"]) == ["teacher"] for s in shown)


def test_no_models_is_an_error_and_no_samples_is_none(toy, make_table):
    with pytest.raises(InputError, match="no model"):
        sample_answers({}, toy.data, toy.collate)
    assert sample_answers({"student": toy.model({})}, toy.data, toy.collate, n=0) == []


def test_pixels_survive_the_way_into_the_page():
    levels = torch.tensor([0, 1, 127, 128, 254, 255])
    pixels = (levels.float() / 127.5 - 1).expand(3, 1, 6)
    image = _open(png_uri(pixels))
    assert image.size == (12, 2)
    assert [image.getpixel((2 * i, 0))[0] for i in range(6)] == levels.tolist()
    assert _open(png_uri(torch.zeros(3, 96, 96))).size == (96, 96)
