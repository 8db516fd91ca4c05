"""The truth of every sample is worked out again here from its record, by other code than made it."""

import re
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest

from potstill.data.scenes import SceneDataset, objects_in_caption
from potstill.data.scenes.vqa import KIND_NAMES

POSITIONS = ("top left", "top right", "bottom left", "bottom right")
OPTIONS = [{}, {"max_objects": 1}, {"split": "heldout_pairs"}, {"concepts": 300}]


def samples(task, number=2400, **options):
    data = SceneDataset(tasks=(task,), size=number, **options)
    return data, data.__getitems__(range(number))


def named(data, text):
    """The number of the concept that a text names, with or without article."""
    text = re.sub(r"^(an?) ", "", text)
    found = [c.number for c in data.concepts if text in (c.name, c.plural)]
    assert len(found) == 1, text
    return found[0]


def colour(data, scene, thing):
    return data.world.colour_of(scene, thing)


def answer_again(data, scene, question):
    things = scene.things

    def at(position):
        return next((t for t in things if POSITIONS[t.cell] == position), None)

    if match := re.fullmatch(r"what is in the (\w+ \w+)\?", question):
        thing = at(match[1])
        return data.concepts[thing.concept].name if thing else "nothing"
    if match := re.fullmatch(r"where (?:is|are) the (.+)\?", question):
        (thing,) = [t for t in things if t.concept == named(data, match[1])]
        return POSITIONS[thing.cell]
    if match := re.fullmatch(r"how many (.+) are there\?", question):
        kinds = {c.number for c in data.concepts if c.category and c.category[1] == match[1]}
        kinds = kinds or {named(data, match[1])}
        return str(sum(t.concept in kinds for t in things))
    if match := re.fullmatch(r"what colour is the object in the (\w+ \w+)\?", question):
        return colour(data, scene, at(match[1]))
    if question == "what colour is the background?":
        return scene.background
    if match := re.fullmatch(r"(?:is|are) the (.+) small or large\?", question):
        (thing,) = [t for t in things if t.concept == named(data, match[1])]
        return "large" if thing.large else "small"
    if match := re.fullmatch(r"(?:is|are) there (.+)\?", question):
        return "yes" if named(data, match[1]) in [t.concept for t in things] else "no"
    raise AssertionError(question)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_answer_is_right_and_in_the_closed_list(options):
    data, all_samples = samples("vqa", **options)
    for sample in all_samples:
        assert sample["truth"] == answer_again(data, sample["scenes"][0], sample["text"]), sample["text"]
        assert data.answers[sample["label"]] == sample["truth"]


def test_question_kinds_are_equally_common():
    _, all_samples = samples("vqa")
    counts = Counter(s["kind"] for s in all_samples)
    assert set(counts) == set(KIND_NAMES)
    assert max(counts.values()) / min(counts.values()) < 1.35


def test_yes_and_no_are_equally_common_and_counts_spread():
    _, all_samples = samples("vqa", 6000)
    truths = defaultdict(Counter)
    for sample in all_samples:
        truths[sample["kind"]][sample["truth"]] += 1
    assert abs(truths["exists"]["yes"] / truths["exists"].total() - 0.5) < 0.06
    assert abs(truths["size"]["large"] / truths["size"].total() - 0.5) < 0.06
    for kind in ("count", "category"):
        assert set(truths[kind]) == set("01234")
        assert max(truths[kind].values()) / truths[kind].total() < 0.27
    assert len(truths["what"]) > 80


def judge_again(data, scene, claim):
    if match := re.fullmatch(r"there (?:is|are) (.+) in the (\w+ \w+)", claim):
        words = re.sub(r"^an? ", "", match[1])
        kinds = {c.number for c in data.concepts if c.category and c.category[0] == words}
        kinds = kinds or {named(data, match[1])}
        position, holds = match[2], lambda t: t.concept in kinds
    else:
        match = re.fullmatch(r"the object in the (\w+ \w+) is (\w+)", claim)
        position, word = match[1], match[2]
        if word in ("small", "large"):
            holds = lambda t: t.large == (word == "large")  # noqa: E731
        else:
            holds = lambda t: colour(data, scene, t) == word  # noqa: E731
    if scene.hidden == POSITIONS.index(position):
        return "neutral"
    thing = next((t for t in scene.things if POSITIONS[t.cell] == position), None)
    return "entailment" if thing is not None and holds(thing) else "contradiction"


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_claim_is_judged_right(options):
    data, all_samples = samples("entailment", **options)
    for sample in all_samples:
        assert sample["truth"] == judge_again(data, sample["scenes"][0], sample["text"]), sample["text"]
        assert data.task_labels["entailment"][sample["label"]] == sample["truth"]


@pytest.mark.parametrize("options", [{}, {"max_objects": 1}], ids=str)
def test_every_sentence_form_has_the_three_labels_equally_often(options):
    _, all_samples = samples("entailment", 9000, **options)
    counts = defaultdict(Counter)
    for sample in all_samples:
        counts[sample["kind"]][sample["truth"]] += 1
    for kind, labels in counts.items():
        for label in ("entailment", "neutral", "contradiction"):
            assert abs(labels[label] / labels.total() - 1 / 3) < 0.05, (kind, label)


def test_the_number_of_things_in_sight_does_not_give_the_label_away():
    _, all_samples = samples("entailment", 9000)
    means = {
        label: np.mean([len(s["scenes"][0].visible) for s in all_samples if s["truth"] == label])
        for label in ("entailment", "neutral", "contradiction")
    }
    assert max(means.values()) - min(means.values()) < 0.12


def true_again(data, pair, sentence):
    def has(scene, text):
        return named(data, text) in [t.concept for t in scene.things]

    left, right = pair
    if match := re.fullmatch(r"both images contain (.+)", sentence):
        return has(left, match[1]) and has(right, match[1])
    if match := re.fullmatch(r"exactly one image contains (.+)", sentence):
        return has(left, match[1]) != has(right, match[1])
    if match := re.fullmatch(r"the left image has (.+) and the right image (.+)", sentence):
        return has(left, match[1]) and has(right, match[2])
    if sentence == "the left image has more objects than the right":
        return len(left.things) > len(right.things)
    if sentence == "the right image has more objects than the left":
        return len(left.things) < len(right.things)
    if sentence == "both images have the same number of objects":
        return len(left.things) == len(right.things)
    if sentence == "both images have the same background":
        return left.background == right.background
    raise AssertionError(sentence)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_sentence_about_a_pair_is_judged_right(options):
    data, all_samples = samples("nlvr2", **options)
    for sample in all_samples:
        assert sample["images"].shape[0] == 2
        assert sample["truth"] == str(true_again(data, sample["scenes"], sample["text"])).lower(), sample["text"]
        assert data.task_labels["nlvr2"][sample["label"]] == sample["truth"]


def test_every_template_about_pairs_is_balanced():
    _, all_samples = samples("nlvr2", 9000)
    counts = defaultdict(Counter)
    for sample in all_samples:
        counts[sample["kind"]][sample["truth"]] += 1
    assert len(counts) == 6
    for kind, labels in counts.items():
        assert abs(labels["true"] / labels.total() - 0.5) < 0.05, kind


def test_single_things_leave_out_the_templates_that_compare_numbers():
    _, all_samples = samples("nlvr2", 400, max_objects=1)
    assert {s["kind"] for s in all_samples} == {"both", "one", "each", "background"}


@pytest.mark.parametrize(("task", "chance", "margin"), [("entailment", 1 / 3, 0.05), ("nlvr2", 0.5, 0.06)])
def test_text_alone_does_not_give_the_label_away(task, chance, margin):
    """Naive Bayes over words and word pairs; the full baselines are in benchmarks/blind_baselines.py."""
    data, all_samples = samples(task, 8000)
    train, test = all_samples[:6000], all_samples[6000:]
    classes = len(data.task_labels[task])

    def features(text):
        words = text.split()
        return [*words, *pairwise(words)]

    counts, totals = defaultdict(lambda: np.ones(classes)), np.ones(classes)
    for sample in train:
        for feature in features(sample["text"]):
            counts[feature][sample["label"]] += 1
        totals[sample["label"]] += 1

    def guess(text):
        score = np.log(totals)
        for feature in features(text):
            score = score + np.log(counts[feature] / totals)
        return score.argmax()

    accuracy = np.mean([guess(s["text"]) == s["label"] for s in test])
    assert accuracy < chance + margin


def test_a_caption_names_everything_in_reading_order():
    data, all_samples = samples("caption", 500)
    for sample in all_samples:
        (scene,) = sample["scenes"]
        parts = sample["text"].split(", ")
        assert [part.split(" ", 1)[1] for part in parts] == [
            f"{data.concepts[t.concept].name} {POSITIONS[t.cell]}" for t in scene.things
        ]
        assert [t.cell for t in scene.things] == sorted(t.cell for t in scene.things)


def test_the_parser_gives_back_what_the_caption_says():
    data, all_samples = samples("caption", 1500, concepts=700)
    for sample in all_samples:
        expected = {(data.concepts[t.concept].name, POSITIONS[t.cell]) for t in sample["scenes"][0].things}
        assert objects_in_caption(sample["text"]) == expected
        assert objects_in_caption(sample["text"].replace(",", " ,").upper()) == expected


def test_the_parser_leaves_out_what_it_cannot_read():
    assert objects_in_caption("") == set()
    assert objects_in_caption("a glorp top left, an apple top, , top left") == set()
    assert objects_in_caption("a dog top left, a a top left, an apple bottom right") == {
        ("dog", "top left"),
        ("apple", "bottom right"),
    }


@pytest.mark.parametrize("language", ["de", "fr", "es", "zh"])
def test_captions_in_other_languages_list_the_names(language):
    data, all_samples = samples("caption", 300, languages=(language,))
    for sample in all_samples:
        assert sample["text"].startswith(f"[{language}] ")
        expected = {(data.concepts[t.concept].name, None) for t in sample["scenes"][0].things}
        assert objects_in_caption(sample["text"], language) == expected


def test_translation_pairs_name_the_same_things_in_the_same_order():
    data, all_samples = samples("translation", 200, languages=("en", "de", "fr"))
    assert {s["language"] for s in all_samples} == {"de", "fr"}
    for sample in all_samples:
        things = [data.concepts[t.concept] for t in sample["scenes"][0].things]
        assert sample["text"] == ", ".join(c.names["en"] for c in things)
        assert sample["truth"] == ", ".join(c.names[sample["language"]] for c in things)


def test_the_heldout_language_is_not_heard_in_training():
    data = SceneDataset("heldout_language", size=50)
    assert {s["language"] for s in data.__getitems__(range(50))} == {"es"}
    assert data.tasks == ("retrieval", "translation")
