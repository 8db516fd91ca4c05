import pytest
import torch

from potstill.data.scenes import SceneCollator, SceneDataset, build_tokenizer
from potstill.data.scenes.composer import POSITIONS
from potstill.data.scenes.wording import PhraseFinder
from potstill.errors import InputError


def quadrants(scene, wanted):
    return sum(1 << t.cell for t in scene.visible if wanted(t.concept))


def test_phrases_say_where_the_named_thing_is_seen():
    data = SceneDataset("train", ("vqa",), kinds=("exists", "where", "count"), phrases=True)
    names = {phrase: c.number for c in data.concepts for phrase in (c.name, c.plural) if phrase}
    for sample in data.__getitems__(range(200)):
        ((end, places),) = sample["phrases"]
        text = sample["text"][:end]
        concept = names[max((n for n in names if text.endswith(f" {n}")), key=len)]
        assert places == quadrants(sample["scenes"][0], concept.__eq__)


def test_a_kind_of_thing_means_all_its_members():
    data = SceneDataset("train", ("vqa",), kinds=("category",), phrases=True)
    for sample in data.__getitems__(range(100)):
        ((_, places),) = sample["phrases"]
        assert places.bit_count() == int(sample["truth"])


def test_what_is_behind_the_panel_is_not_pointed_at():
    data = SceneDataset("train", ("entailment",), kinds=("thing",), phrases=True)
    for sample in data.__getitems__(range(200)):
        (scene,) = sample["scenes"]
        assert all(not places >> scene.hidden & 1 for _, places in sample["phrases"])


def test_a_colour_that_is_also_a_thing_is_no_phrase_and_pairs_have_none():
    claims = SceneDataset("train", ("entailment", "nlvr2"), kinds=("colour", "both", "one"), phrases=True)
    assert all(sample["phrases"] == [] for sample in claims.__getitems__(range(100)))


def test_a_phrase_is_a_whole_word_and_the_longest_one():
    finder = PhraseFinder(SceneDataset("train").concepts)
    text = "is there a soccer ball?"
    ((end, members),) = finder(text)
    assert text[:end].endswith("soccer ball")
    assert len(members) == 1
    assert list(finder("is there a doghouse?")) == []


def test_grounding_lists_things_that_are_there_among_others_that_are_not():
    data = SceneDataset("train", ("grounding",))
    for sample in data.__getitems__(range(200)):
        (scene,) = sample["scenes"]
        pointed = 0
        for _, places in sample["phrases"]:
            pointed |= places
        assert pointed == quadrants(scene, lambda number: True)
        assert any(places == 0 for _, places in sample["phrases"])


def test_the_batch_has_the_places_at_the_last_token_of_each_phrase():
    data = SceneDataset("train", ("grounding", "caption", "nlvr2"), phrases=True)
    tokenizer = build_tokenizer()
    samples = data.__getitems__(range(60))
    batch = SceneCollator(tokenizer, data.task_labels)(samples)
    assert batch["phrase_places"].shape == batch["input_ids"].shape
    for row, sample in enumerate(samples):
        labels = batch["phrase_places"][row]
        assert labels[labels >= 0].tolist() == [places for _, places in sample["phrases"]]
        last = [sample["text"][:end].replace(",", " ").split()[-1] for end, _ in sample["phrases"]]
        assert tokenizer.convert_ids_to_tokens(batch["input_ids"][row][labels >= 0]) == last


def test_without_phrases_samples_and_batches_are_as_before():
    plain, more = SceneDataset("train"), SceneDataset("train", phrases=True)
    collator = SceneCollator(build_tokenizer(), plain.task_labels)
    one, other = (collator(data.__getitems__(range(32))) for data in (plain, more))
    assert set(other) - set(one) == {"phrase_places"}
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_kinds_restrict_every_task_that_has_them():
    data = SceneDataset("train", ("vqa", "entailment", "nlvr2", "caption"), kinds=("where", "thing", "each"))
    assert {s["kind"] for s in data.__getitems__(range(80))} == {"where", "thing", "each", "caption"}


@pytest.mark.parametrize(
    ("tasks", "kinds", "said"),
    [(("vqa",), ("wher",), "where"), (("vqa", "nlvr2"), ("where",), "nlvr2"), (("vqa",), (), "vqa")],
)
def test_kinds_that_are_unknown_or_leave_a_task_empty_are_refused(tasks, kinds, said):
    with pytest.raises(InputError, match=said) as caught:
        SceneDataset("train", tasks, kinds=kinds)
    assert caught.value.where == "kinds"


def test_places_in_questions_point_at_themselves():
    given = {"kinds": ("what", "colour", "where"), "phrases": True}
    plain, more = SceneDataset("train", ("vqa",), **given), SceneDataset("train", ("vqa",), places=True, **given)
    seen = set()
    for without, sample in zip(plain.__getitems__(range(60)), more.__getitems__(range(60))):
        assert sample["text"] == without["text"]
        assert [row for row in sample["phrases"] if row not in without["phrases"]] == (
            [] if sample["kind"] == "where" else [(len(sample["text"]) - 1, sample["phrases"][-1][1])]
        )
        if sample["kind"] != "where":
            place = " ".join(sample["text"].rstrip("?").split()[-2:])
            assert sample["phrases"][-1][1] == 1 << POSITIONS.index(place)
        seen.add(sample["kind"])
    assert seen == {"what", "colour", "where"}
