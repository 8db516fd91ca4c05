"""Single emoji: which concepts, vendors and targets there are."""

from collections import Counter

import pytest
import torch

from potstill.data.emoji import SPLITS, EmojiDataset, classes_for
from potstill.data.emoji.dataset import drawings_of
from potstill.data.emoji_source import build_emoji
from potstill.data.pictures import PictureOptions
from potstill.data.pictures.render import Look, paint
from potstill.data.scenes.pack import load_pack
from potstill.errors import InputError

PLAIN = PictureOptions(augment="none")


def test_every_run_of_as_many_samples_as_concepts_holds_each_once():
    data = EmojiDataset("train", concepts=20)
    labels = [sample["label"] for sample in data.__getitems__(range(100))]
    runs = [labels[i : i + 20] for i in range(0, 100, 20)]
    assert all(sorted(run) == list(range(20)) for run in runs)
    assert len({tuple(run) for run in runs}) == 5


def test_the_classes_are_the_first_concepts_of_the_pack_by_name():
    source = build_emoji()
    assert source.model_fields["id2label"] == {c.number: c.name for c in load_pack().concepts[:200]}
    assert source.model_fields["num_labels"] == 200


def test_the_few_class_targets_sort_the_concepts():
    concepts = load_pack().concepts[:200]
    class_of, names = classes_for(concepts, "binary")
    assert names == ["other", "animal"]
    assert Counter(class_of) == {0: 103, 1: 97}
    is_animal = {concept.name: value for concept, value in zip(concepts, class_of)}
    assert [is_animal[name] for name in ("panda", "apple", "rose", "bee")] == [1, 0, 0, 1]
    for target, number in (("subgroup", 35), ("group", 7)):
        class_of, names = classes_for(concepts, target)
        assert len(names) == len(set(class_of)) == number
        assert all(names[value] == getattr(concept, target) for value, concept in zip(class_of, concepts))
    data = EmojiDataset("test", target="group", options=PLAIN)
    assert {sample["label"] for sample in data.__getitems__(range(200))} == set(range(7))


def test_the_held_out_vendor_is_never_trained_on():
    source = build_emoji()
    assert source.split("train").vendors == source.split("test").vendors == ("noto", "twemoji")
    assert source.split("heldout_vendor").vendors == ("fluent-flat",)
    assert build_emoji(vendors=["noto"]).split("validation").vendors == ("noto",)


def test_scores_by_name_are_also_given_by_group():
    assert EmojiDataset("test", size=1)[0]["kind"] in {c.group for c in load_pack().concepts}
    assert "kind" not in EmojiDataset("test", size=1, target="binary")[0]


def test_a_drawing_shown_as_it_is_is_the_drawing_on_its_ground():
    drawing = drawings_of("noto", 64)[:3]
    look = Look.plain(3, 3)
    look.ground[:] = torch.tensor([0.2, 0.4, 0.6])
    pictures, cover = paint(drawing, look, 64)
    layers = drawing.float() / 255
    expected = layers[:, :3] + (1 - layers[:, 3:]) * torch.tensor([0.2, 0.4, 0.6]).view(3, 1, 1)
    torch.testing.assert_close(pictures, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(cover, layers[:, 3], atol=1e-3, rtol=0)


def test_a_mirrored_drawing_is_mirrored_and_a_shifted_one_is_shifted():
    drawing, look = drawings_of("noto", 32)[:1], Look.plain(1, 3)
    plain = paint(drawing, look, 32)[0]
    look.mirror = torch.tensor([-1.0])
    torch.testing.assert_close(paint(drawing, look, 32)[0], plain.flip(-1), atol=1e-3, rtol=0)
    look.mirror, look.across = torch.tensor([1.0]), torch.tensor([0.25])  # four pixels of 32
    torch.testing.assert_close(paint(drawing, look, 32)[0][..., 4:], plain[..., :-4], atol=1e-3, rtol=0)


def test_junk_needs_drawings_outside_the_task():
    with pytest.raises(InputError, match="every drawing"):
        build_emoji(concepts=750, junk=0.1)


def test_labels_of_each_class_are_counted_in_a_pool_only():
    with pytest.raises(InputError, match="pool"):
        build_emoji(labelled=5)


def test_a_pool_has_its_own_size():
    with pytest.raises(InputError, match="pool's"):
        build_emoji(pool=100, size=50)
    assert len(build_emoji(size=50).split("train")) == 50
    assert len(build_emoji(pool=100).split("train", 30)) == 30


def test_every_split_says_what_it_is():
    assert all(split.about for split in SPLITS.values())


def test_an_unknown_vendor_is_refused():
    with pytest.raises(InputError, match="unknown vendor"):
        build_emoji(vendors=["notto"])
