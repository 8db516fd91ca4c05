import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from potstill.data.scenes import SPLITS, TASKS, SceneCollator, SceneDataset, build_tokenizer
from potstill.data.scenes.composer import PANEL
from potstill.data.scenes.splits import heldout_partners, is_heldout_pair
from potstill.errors import InputError


def same(one, other):
    return (
        one.keys() == other.keys()
        and all(np.array_equal(one[key], other[key]) for key in ("images", "masks", "concept_map") if key in one)
        and all(one[key] == other[key] for key in one if key not in ("images", "masks", "concept_map"))
    )


def test_a_sample_depends_on_seed_split_and_index_only():
    one, other = SceneDataset(size=500), SceneDataset(size=500)
    np.random.seed(1)
    torch.manual_seed(1)
    forward = [one[i] for i in range(20)]
    np.random.seed(2)
    batch = other.__getitems__(list(reversed(range(20))))
    assert all(same(a, b) for a, b in zip(forward, reversed(batch)))


def test_the_size_of_the_dataset_does_not_change_its_samples():
    assert same(SceneDataset(size=10)[7], SceneDataset(size=1_000_000)[7])


def test_another_seed_and_another_split_are_other_scenes():
    base = SceneDataset(size=40)
    for other in (SceneDataset(size=40, seed=1), SceneDataset("test", size=40)):
        equal = sum(base[i]["scenes"] == other[i]["scenes"] for i in range(40))
        assert equal <= 2


def test_no_train_scene_comes_back_in_test():
    train = {s["scenes"] for s in SceneDataset(size=4000, min_objects=3).__getitems__(range(4000))}
    test = {s["scenes"] for s in SceneDataset("test", size=1000, min_objects=3).__getitems__(range(1000))}
    assert len(train) > 3990
    assert not train & test


def test_workers_do_not_change_the_batches():
    data = SceneDataset(size=48)
    collator = SceneCollator(build_tokenizer(), data.task_labels)

    def batches(workers):
        return list(DataLoader(data, batch_size=16, collate_fn=collator, num_workers=workers))

    for alone, helped in zip(batches(0), batches(2)):
        assert alone.keys() == helped.keys()
        assert all(torch.equal(alone[key], helped[key]) for key in alone)


def test_a_dataset_can_be_pickled():
    data = SceneDataset(size=8, concepts=12)
    assert same(pickle.loads(pickle.dumps(data))[3], data[3])


def test_reading_a_sample_leaves_the_global_random_state_alone():
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()
    SceneDataset(size=8).__getitems__(range(8))
    assert np.array_equal(before, np.random.get_state()[1])
    assert torch.equal(torch_before, torch.get_rng_state())


def test_every_run_of_four_holds_every_task_once_in_changing_order():
    data = SceneDataset(size=400)
    tasks = data.tasks_of(range(400))
    runs = [tuple(tasks[i : i + 4]) for i in range(0, 400, 4)]
    assert all(sorted(run) == sorted(data.tasks) for run in runs)
    assert len(set(runs)) > 15


def test_a_task_named_twice_comes_twice_as_often():
    data = SceneDataset(size=300, tasks=("vqa", "vqa", "caption"))
    assert Counter(data.tasks_of(range(300))) == {"vqa": 200, "caption": 100}


def test_indices_count_from_the_end_and_stop_there():
    data = SceneDataset(size=10)
    assert data[-1]["index"] == 9
    for index in (10, -11):
        with pytest.raises(IndexError):
            data[index]
    assert sum(1 for _ in data) == 10


SPLITS_AND_NUMBERS = [
    (split, low, high)
    for split in sorted(SPLITS)
    for low, high in [(1, 1), (1, 2), (1, 4), (2, 2), (4, 4)]
    if split != "heldout_pairs" or high > 1  # a held-out pair is two things
]


@pytest.mark.parametrize(("split", "low", "high"), SPLITS_AND_NUMBERS)
def test_every_split_gives_every_task_at_every_number_of_things(split, low, high):
    english = split != "heldout_language"
    tasks = [t for t in TASKS if english or t not in ("vqa", "entailment", "nlvr2")]
    languages = ("en", "de") if english else ("es",)
    data = SceneDataset(split, tasks, size=350, min_objects=low, max_objects=high, languages=languages)
    for sample in data.__getitems__(range(350)):
        for scene in sample["scenes"]:
            fewest = min(low, 2) if sample["task"] == "entailment" else low  # a panel, and perhaps an empty place
            assert fewest <= len(scene.things) <= high
            assert len({t.cell for t in scene.things}) == len(scene.things)
            assert scene.vendor in data.vendors


def test_pictures_have_the_asked_size_and_things_stay_apart():
    for size in (32, 48, 64, 96):
        data = SceneDataset(size=40, tasks=("segmentation",), image_size=size, min_objects=4)
        for sample in data.__getitems__(range(40)):
            assert sample["images"].shape == (1, size, size, 3)
            assert sample["images"].dtype == np.uint8
            half = size // 2
            quarters = sample["masks"][0].reshape(2, half, 2, half).swapaxes(1, 2).reshape(4, -1)
            for k, quarter in enumerate(quarters, start=1):
                assert set(np.unique(quarter)) == {0, k}


def test_masks_cover_the_thing_and_name_its_concept():
    data = SceneDataset(size=60, tasks=("segmentation",))
    for sample in data.__getitems__(range(60)):
        (scene,), masks, concepts = sample["scenes"], sample["masks"][0], sample["concept_map"][0]
        for k, thing in enumerate(scene.things, start=1):
            assert (concepts[masks == k] == thing.concept).all()
            assert (masks == k).sum() > 20
        assert (concepts[masks == 0] == -100).all()


def test_a_pixel_outside_every_mask_shows_the_background():
    data = SceneDataset(size=30, tasks=("segmentation",))
    for sample in data.__getitems__(range(30)):
        corner = sample["images"][0][sample["masks"][0] == 0]
        _, counts = np.unique(corner, axis=0, return_counts=True)
        assert counts.max() > 0.6 * len(corner)


def test_masks_are_given_for_every_task_when_asked():
    data = SceneDataset(size=12, masks=True)
    for sample in data.__getitems__(range(12)):
        assert sample["masks"].shape == sample["concept_map"].shape == sample["images"].shape[:3]


def test_what_is_behind_the_panel_is_not_in_the_picture():
    data = SceneDataset(size=60, tasks=("entailment",), masks=True)
    seen = 0
    for sample in data.__getitems__(range(60)):
        (scene,) = sample["scenes"]
        row, column = divmod(scene.hidden, 2)
        window = np.s_[row * 24 : row * 24 + 24, column * 24 : column * 24 + 24]
        assert (sample["images"][0][window] == PANEL).all()
        assert (sample["masks"][0][window] == 0).all()
        seen += scene.at(scene.hidden) is not None
    assert 10 < seen < 50


def scenes_of(split, **options):
    data = SceneDataset(split, size=3000, min_objects=2, **options)
    return data, [scene for sample in data.__getitems__(range(3000)) for scene in sample["scenes"]]


def held_out(data, scene):
    names = [data.concepts[t.concept].hex for t in scene.things]
    return any(is_heldout_pair(a, b) for a in names for b in names)


@pytest.mark.parametrize("split", ["train", "validation", "test", "heldout_vendor"])
def test_heldout_pairs_never_meet_elsewhere(split):
    data, scenes = scenes_of(split)
    assert not any(held_out(data, scene) for scene in scenes)


@pytest.mark.parametrize("concepts", [40, 96])
def test_every_scene_of_heldout_pairs_has_one(concepts):
    data, scenes = scenes_of("heldout_pairs", concepts=concepts)
    assert all(held_out(data, scene) for scene in scenes)


def test_about_one_pair_in_ten_is_held_out_whatever_the_order():
    data = SceneDataset(size=1)
    hexes = tuple(c.hex for c in data.concepts)
    partners = heldout_partners(hexes)
    share = sum(map(len, partners)) / (len(hexes) * (len(hexes) - 1))
    assert 0.08 < share < 0.12
    assert all(a in partners[b] for a in range(len(hexes)) for b in partners[a])
    assert is_heldout_pair(hexes[0], hexes[1]) == is_heldout_pair(hexes[1], hexes[0])


def test_vendors_of_the_splits_do_not_overlap():
    train, held = SceneDataset(size=200), SceneDataset("heldout_vendor", size=200)
    used = [{s.vendor for sample in data.__getitems__(range(200)) for s in sample["scenes"]} for data in (train, held)]
    assert used == [{"noto", "twemoji"}, {"fluent-flat"}]


def test_a_fewer_concepts_dataset_uses_the_first_ones():
    data = SceneDataset(size=300, concepts=20)
    used = {t.concept for s in data.__getitems__(range(300)) for scene in s["scenes"] for t in scene.things}
    assert used == set(range(20))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "trian"}, 'Did you mean "train"'),
        ({"tasks": ("vqq",)}, 'Did you mean "vqa"'),
        ({"tasks": ()}, "no task"),
        ({"vendors": ("notoo",)}, 'Did you mean "noto"'),
        ({"languages": ("xx",)}, 'unknown language "xx"'),
        ({"split": "heldout_language", "tasks": ("vqa",)}, "speak English"),
        ({"split": "heldout_pairs", "max_objects": 1}, "max_objects"),
        ({"concepts": 5}, "concepts"),
        ({"concepts": 100_000}, "concepts"),
        ({"image_size": 47}, "image_size"),
        ({"image_size": 16}, "image_size"),
        ({"min_objects": 3, "max_objects": 2}, "min_objects"),
        ({"max_objects": 5}, "max_objects"),
        ({"size": 0}, "size"),
        ({"seed": "a"}, "seed"),
        ({"tasks": ("translation",)}, "languages"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(InputError, match=message):
        SceneDataset(**options)
