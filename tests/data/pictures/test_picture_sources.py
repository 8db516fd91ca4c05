"""What the sources of pictures with one class share: numbers decide everything, and labels are as the options say."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from potstill.data.digits_source import build_digits
from potstill.data.emoji_source import build_emoji
from potstill.data.pictures import ODD_STYLES
from potstill.data.pictures.render import odd_style
from potstill.errors import InputError
from potstill.run.check import check_fit

SOURCES = {"emoji": build_emoji, "digits": build_digits}
CHANNELS = {"emoji": 3, "digits": 1}


@pytest.fixture(params=SOURCES)
def build(request):
    def make(**options):
        return SOURCES[request.param](**options)

    make.name = request.param
    return make


def batch_of(source, split="train", rows=range(40)):
    return source.collator(source.split(split).__getitems__(list(rows)))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_batch_holds_pictures_labels_and_numbers(build):
    source = build()
    batch = batch_of(source)
    side = source.model_fields["image_size"]
    assert batch["pixel_values"].shape == (40, CHANNELS[build.name], side, side)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_values"].abs().max() <= 1
    assert batch["sample_id"].tolist() == list(range(40))
    assert torch.equal(batch["labels"], batch["true_class"])
    assert 0 <= batch["labels"].min() <= batch["labels"].max() < source.model_fields["num_labels"]
    assert source.model_fields["num_channels"] == CHANNELS[build.name]


@pytest.mark.parametrize("augment", ["none", "light", "strong"])
def test_a_sample_depends_on_its_number_and_not_on_its_batch(build, augment):
    one, other = (build(augment=augment, pool=60, odd=0.5, junk=0.2, masks=True) for _ in range(2))
    np.random.seed(1)
    torch.manual_seed(1)
    alone = one.collator([one.split("train")[number] for number in range(12)])
    torch.manual_seed(2)
    together = other.collator(other.split("train").__getitems__(list(reversed(range(12)))))
    assert same(alone, {key: value.flip(0) for key, value in together.items()})


def test_another_seed_is_another_training_set_and_the_same_test(build):
    one, other = build(seed=0), build(seed=1)
    assert not torch.equal(batch_of(one)["pixel_values"], batch_of(other)["pixel_values"])
    assert same(batch_of(one, "test"), batch_of(other, "test"))


def test_no_test_picture_is_a_training_picture(build):
    source = build(augment="none")
    train = {row.numpy().tobytes() for row in batch_of(source, rows=range(600))["pixel_values"]}
    test = {row.numpy().tobytes() for row in batch_of(source, "test", range(600))["pixel_values"]}
    assert len(train) == len(test) == 600
    assert not train & test


def test_a_pool_shows_the_same_pictures_in_every_epoch_unless_it_is_augmented(build):
    data = {augment: build(augment=augment, pool=50).split("train") for augment in ("none", "light")}
    for name, dataset in data.items():
        assert len(dataset) == 50
        assert not dataset.is_generated
        before = torch.stack([sample["image"] for sample in dataset.__getitems__(range(50))])
        dataset.set_epoch(1)
        after = torch.stack([sample["image"] for sample in dataset.__getitems__(range(50))])
        assert torch.equal(before, after) == (name == "none")
        dataset.set_epoch(0)
        again = torch.stack([sample["image"] for sample in dataset.__getitems__(range(50))])
        assert torch.equal(before, again)


def test_the_plain_training_set_has_the_same_samples_without_augmentation(build):
    options = {"pool": 50, "label_noise": 0.3, "seed": 3}
    source, unchanged = build(augment="strong", views=2, **options), build(augment="none", **options)
    plain = source.collator(source.plain_train().__getitems__(range(50)))
    assert same(plain, batch_of(unchanged, rows=range(50)))
    assert plain["labels"].tolist() == [sample["label"] for sample in source.split("train").__getitems__(range(50))]
    assert len(source.plain_train(20)) == 20


def test_two_views_are_two_pictures_of_each_sample_first_all_first_ones(build):
    source = build(views=2, pool=50)
    batch = batch_of(source, rows=range(8))
    assert len(batch["pixel_values"]) == 16
    assert batch["view"].tolist() == [0] * 8 + [1] * 8
    assert batch["sample_id"].tolist() == 2 * list(range(8))
    assert torch.equal(batch["labels"][:8], batch["labels"][8:])
    first, second = batch["pixel_values"].chunk(2)
    assert not any(torch.equal(a, b) for a, b in zip(first, second))
    assert torch.equal(first, batch_of(build(pool=50), rows=range(8))["pixel_values"])
    assert len(batch_of(source, "test", range(8))["pixel_values"]) == 8


def test_wrong_labels_are_as_many_as_asked_and_stay_the_same(build):
    source = build(label_noise=0.3, pool=2000)
    batch = batch_of(source, rows=range(2000))
    is_wrong = batch["labels"] != batch["true_class"]
    assert 0.26 < is_wrong.float().mean() < 0.34
    assert batch["labels"].max() < source.model_fields["num_labels"]
    assert len(batch["labels"][is_wrong].unique()) > 0.85 * source.model_fields["num_labels"]
    assert torch.equal(batch["labels"], batch_of(build(label_noise=0.3, pool=2000), rows=range(2000))["labels"])
    clean = batch_of(source, "test", range(200))
    assert torch.equal(clean["labels"], clean["true_class"])


def test_so_many_samples_of_each_class_keep_their_label(build):
    batch = batch_of(build(labelled=3, pool=2000), rows=range(2000))
    has_label = batch["labels"] != -100
    assert torch.equal(batch["labels"][has_label], batch["true_class"][has_label])
    classes = build().model_fields["num_labels"]
    assert batch["labels"][has_label].bincount(minlength=classes).tolist() == [3] * classes


def test_a_share_of_the_samples_keeps_its_label(build):
    labels = batch_of(build(labelled=0.25, pool=2000), rows=range(2000))["labels"]
    assert 0.21 < (labels != -100).float().mean() < 0.29


def test_new_classes_have_no_label_and_splits_of_their_own(build):
    source = build(known=6, **({"concepts": 12} if build.name == "emoji" else {}), label_noise=0.2)
    batch = batch_of(source, rows=range(240))
    is_new = batch["true_class"] >= 6
    assert bool(is_new.any())
    assert torch.equal(batch["labels"] == -100, is_new)
    assert batch["labels"].max() == 5
    assert source.model_fields["num_labels"] == len(source.model_fields["id2label"]) == 6
    assert batch_of(source, "test")["labels"].max() <= 5
    assert batch_of(source, "novel")["labels"].min() >= 6
    assert len(batch_of(source, "all", range(100))["labels"].unique()) == (12 if build.name == "emoji" else 10)


def test_junk_shows_no_class_and_has_a_label_all_the_same(build):
    source, clean = build(junk=0.4, pool=1000, augment="none"), build(pool=1000, augment="none")
    batch, as_it_is = batch_of(source, rows=range(1000)), batch_of(clean, rows=range(1000))
    is_junk = batch["true_class"] == -100
    assert 0.35 < is_junk.float().mean() < 0.45
    assert torch.equal(batch["labels"], as_it_is["labels"])
    differs = (batch["pixel_values"] != as_it_is["pixel_values"]).flatten(1).any(1)
    assert torch.equal(differs, is_junk)


def test_odd_styles_are_as_many_as_asked(build):
    source, clean = build(odd=0.5, pool=1000, augment="none"), build(pool=1000, augment="none")
    one, other = batch_of(source, rows=range(1000)), batch_of(clean, rows=range(1000))
    is_odd = (one["pixel_values"] != other["pixel_values"]).flatten(1).any(1)
    assert 0.45 < is_odd.float().mean() < 0.55
    assert torch.equal(one["labels"], other["labels"])


def test_odd_styles_are_what_they_are_called():
    pictures = torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    made = {style: odd_style(pictures.clone(), style) for style in ODD_STYLES}
    torch.testing.assert_close(made["inverted"], 1 - pictures)
    assert made["blurred"].std() < 0.5 * pictures.std()
    assert torch.equal(made["grey"][:, 0], made["grey"][:, 2])
    assert 0.34 < made["faded"].min() < made["faded"].max() < 0.66
    assert set(odd_style(pictures[:, :1], "grey").unique().tolist()) == {0.0, 1.0}


def test_the_map_of_classes_is_where_the_drawing_is(build):
    batch = batch_of(build(masks=True, views=2, augment="light"), rows=range(20))
    maps = batch["class_map"]
    assert maps.shape == (40, *batch["pixel_values"].shape[2:])
    for row, label in zip(maps, batch["labels"]):
        assert set(row.unique().tolist()) == {-100, int(label)}
    assert "class_map" not in batch_of(build(masks=True), "test")


def test_workers_do_not_change_the_batches(build):
    source = build(augment="strong", pool=48, views=2)

    def batches(workers):
        data = source.split("train")
        data.set_epoch(3)
        return list(DataLoader(data, batch_size=16, collate_fn=source.collator, num_workers=workers))

    assert all(same(alone, helped) for alone, helped in zip(batches(0), batches(2)))


def test_a_dataset_can_be_pickled_and_leaves_the_global_random_state_alone(build):
    data = build(pool=20).split("train")
    before = torch.get_rng_state()
    one, other = data[3], pickle.loads(pickle.dumps(data))[3]
    assert torch.equal(one["image"], other["image"])
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(data[-1]["image"], data[19]["image"])
    with pytest.raises(IndexError):
        data[20]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"augment": "lots"}, "augment"),
        ({"label_noise": 1.0}, "label_noise"),
        ({"label_noise": -0.1}, "label_noise"),
        ({"junk": 1}, "junk"),
        ({"odd": 1.1}, "odd"),
        ({"views": 3}, "views"),
        ({"views": True}, "views"),
        ({"pool": 0}, "pool"),
        ({"known": 1}, "known"),
        ({"known": 200}, "known"),
        ({"known": 5, "target": "binary"}, "known"),
        ({"labelled": 0}, "labelled"),
        ({"labelled": 1.0}, "labelled"),
        ({"target": "colour"}, "target"),
        ({"image_size": 8}, "image_size"),
        ({"seed": 0.5}, "seed"),
    ],
)
def test_an_option_that_does_not_fit_is_named(build, options, named):
    with pytest.raises(InputError) as caught:
        build(**options)
    assert caught.value.where == named


def test_an_unknown_split_and_an_empty_one_are_refused(build):
    source = build()
    with pytest.raises(InputError, match="unknown split"):
        source.split("tset")
    with pytest.raises(InputError, match="have labels"):
        source.split("novel")


def test_a_model_for_pictures_of_another_kind_is_refused(build):
    from transformers import ResNetConfig, ResNetForImageClassification

    source = build()
    sizes = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    fields = {**source.model_fields, "num_channels": 4 - CHANNELS[build.name]}
    model = ResNetForImageClassification(ResNetConfig(**sizes, **fields))
    with pytest.raises(InputError, match="num_channels"):
        check_fit(model, "teacher", source)
