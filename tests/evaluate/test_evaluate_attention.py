"""Attention of two models compared: numbers worked out by hand, padding that counts for nothing, small files."""

import copy
import json
import math

import pytest
import torch
from torch import nn

from potstill.errors import ShapeError
from potstill.evaluate import MapPair, attention_distance, compare_attention, head_similarity
from potstill.evaluate.attention import LARGEST
from potstill.evaluate.attention_axes import Axis, axis_of, places

SELF, CROSS = "multimodal_decoder.blocks.0@self_attention", "multimodal_decoder.blocks.0@cross_attention"
IMAGE, TEXT = "image_encoder.blocks.1@attention", "text_decoder.blocks.0@attention"


def pair(tap, **more):
    return MapPair(tap, tap, **{"name": tap.split(".")[0], "mask": None, **more})


@pytest.fixture(scope="module")
def two(scenes):
    """A teacher and a student of the same sizes but other weights, and the data."""
    return scenes.model(0), scenes.model(1), scenes


# Distances


def test_even_attention_on_a_grid_of_four_looks_as_far_as_the_mean_distance():
    even = torch.full((1, 1, 4, 4), 0.25)
    expected = (0 + 1 + 1 + math.sqrt(2)) / 4  # from any corner: itself, two neighbours, the other end
    assert attention_distance(even, places(Axis(side=2))).item() == pytest.approx(expected)


def test_attention_to_itself_has_no_distance_and_to_the_first_word_has_the_mean_position():
    maps = torch.stack([torch.eye(4), torch.eye(4)[[0, 0, 0, 0]]])[None]
    assert attention_distance(maps, places(Axis(text=4))).tolist() == [[0.0, 1.5]]


def test_padding_has_no_part_in_the_distance():
    torch.manual_seed(0)
    real = torch.rand(2, 3, 4, 4).softmax(-1)
    padded = torch.rand(2, 3, 7, 7)  # whatever stands there
    padded[:, :, :4, :4] = real
    mask = torch.tensor([[True] * 4 + [False] * 3] * 2)
    with_padding = attention_distance(padded, places(Axis(text=7)), mask)
    torch.testing.assert_close(with_padding, attention_distance(real, places(Axis(text=4))))


def test_a_sample_without_a_word_has_no_distance():
    maps = torch.full((2, 1, 2, 2), 0.5)
    found = attention_distance(maps, places(Axis(text=2)), torch.tensor([[True, True], [False, False]]))
    assert found[0].item() == 0.5
    assert found[1].isnan().all()


def test_maps_and_positions_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="attention_distance"):
        attention_distance(torch.ones(1, 1, 2, 3), torch.zeros(2, 1))


# Likeness of heads


def test_likeness_is_the_cosine_of_the_maps():
    teacher, student = torch.tensor([[[[0.6, 0.4]]]]), torch.tensor([[[[0.9, 0.1]], [[0.2, 0.8]]]])
    found = head_similarity(student, teacher)
    expected = [(0.54 + 0.04) / math.sqrt(0.52 * 0.82), (0.12 + 0.32) / math.sqrt(0.52 * 0.68)]
    assert found.shape == (1, 1, 2)
    assert found.flatten().tolist() == pytest.approx(expected)


def test_rows_of_padding_have_no_part_in_the_likeness():
    torch.manual_seed(0)
    student, teacher = torch.rand(1, 2, 5, 4).softmax(-1), torch.rand(1, 3, 5, 4).softmax(-1)
    mask = torch.tensor([[True, True, True, False, False]])
    torch.testing.assert_close(
        head_similarity(student, teacher, mask), head_similarity(student[:, :, :3], teacher[:, :, :3])
    )


@pytest.mark.parametrize("tap", [SELF, CROSS, IMAGE, TEXT])
def test_a_model_and_its_copy_are_alike_head_by_head(two, tap):
    teacher, _, scenes = two
    found = compare_attention(copy.deepcopy(teacher), teacher, [pair(tap)], scenes.data, scenes.collator, max_samples=8)
    (entry,) = found["pairs"]
    assert [row[i] for i, row in enumerate(entry["similarity"])] == [1.0, 1.0]
    assert entry["similarity"][0][1] == entry["similarity"][1][0] < 1
    assert [sum(row) for row in entry["alignment"]] == pytest.approx([1, 1], abs=2e-3)
    for span in found["distance"]:
        assert span["student_heads"] == span["teacher_heads"]


def test_heads_in_another_order_permute_the_matrix_and_nothing_else(two):
    teacher, student, scenes = two
    swapped = copy.deepcopy(student)
    attention = swapped.get_submodule("multimodal_decoder.blocks.0.cross_attn")
    half = attention.head_dim
    order = torch.cat([torch.arange(half, 2 * half), torch.arange(half)])
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "v_proj"):
            layer = getattr(attention, name)
            layer.weight.copy_(layer.weight[order])
            layer.bias.copy_(layer.bias[order])
        attention.out_proj.weight.copy_(attention.out_proj.weight[:, order])
    before, after = (
        compare_attention(model, teacher, [pair(CROSS)], scenes.data, scenes.collator, max_samples=8)
        for model in (student, swapped)
    )
    for key in ("similarity", "alignment"):
        assert after["pairs"][0][key] == [row[::-1] for row in before["pairs"][0][key]]
    means = [
        [m for m in s["maps"][0]["rows"] if "teacher_head" not in m] for s in (before["shown"][0], after["shown"][0])
    ]
    assert means[0] == means[1]  # the mean over heads knows no order


def test_longer_padding_changes_nothing(two):
    teacher, student, scenes = two

    def longer(samples):
        batch = scenes.collator(samples)
        for key in ("input_ids", "attention_mask"):
            batch[key] = nn.functional.pad(batch[key], (0, 5))
        batch["caption_labels"] = nn.functional.pad(batch["caption_labels"], (0, 5), value=-100)
        return batch

    longer.tokenizer = scenes.collator.tokenizer
    plain, padded = (
        compare_attention(student, teacher, [pair(t) for t in (SELF, CROSS, TEXT)], scenes.data, c, max_samples=8)
        for c in (scenes.collator, longer)
    )
    assert plain["pairs"] == padded["pairs"]
    assert plain["distance"] == padded["distance"]
    assert plain["shown"] == padded["shown"]


# What is shown


def test_words_are_shown_over_their_pictures_with_the_words_they_are(two):
    teacher, student, scenes = two
    found = compare_attention(student, teacher, [pair(CROSS)], scenes.data, scenes.collator, max_samples=16)
    assert {sample["task"] for sample in found["shown"]} == {"caption", "entailment", "nlvr2", "vqa"}
    assert found["pairs"][0]["queries"] == "words"
    assert found["pairs"][0]["keys"] == "picture"
    for sample in found["shown"]:
        pictures = 2 if sample["task"] == "nlvr2" else 1
        assert len(sample["images"]) == pictures
        (maps,) = sample["maps"]
        assert maps["kind"] == "picture"
        assert maps["grid"] == [6, 6]
        assert maps["rows"]
        assert len([row for row in maps["rows"] if "teacher_head" not in row]) <= 8
        for row in maps["rows"]:
            assert not row["query"].startswith("[")
            for side in ("teacher", "student"):
                assert [len(cells) for cells in row[side]] == [36] * pictures
                # Followed through the pooler, what a word gives to the memory is what it gives to the patches.
                assert sum(map(sum, row[side])) == pytest.approx(1000, abs=36)


def test_a_word_that_looks_at_one_memory_token_is_shown_at_the_patches_it_was_pooled_from(two):
    teacher, _, scenes = two
    sharp = copy.deepcopy(teacher)
    with torch.no_grad():
        sharp.image_pooler.caption.attn.q_proj.weight.zero_()
        sharp.image_pooler.caption.attn.q_proj.bias.zero_()  # pooled evenly: no word can tell the patches apart
    found = compare_attention(
        copy.deepcopy(sharp), sharp, [pair(CROSS)], scenes.data, scenes.collator, max_samples=8, n=1
    )
    cells = found["shown"][0]["maps"][0]["rows"][0]["teacher"][0]
    assert set(cells) == {28}  # 1000 / 36


def test_patches_that_look_are_framed_and_words_make_a_square(two):
    teacher, student, scenes = two
    found = compare_attention(student, teacher, [pair(IMAGE), pair(TEXT)], scenes.data, scenes.collator, max_samples=8)
    patches, words = found["shown"][0]["maps"]
    assert patches["kind"] == "picture"
    assert all(row["query"] == f"row {row['cell'] // 6 + 1}, column {row['cell'] % 6 + 1}" for row in patches["rows"])
    assert words["kind"] == "words"
    assert words["queries"] == words["keys"]
    rows = words["rows"][0]["teacher"]
    assert len(rows) == len(rows[0]) == len(words["queries"])
    assert all(sum(row) == pytest.approx(1000, abs=20) for row in rows)
    assert all(v == 0 for i, row in enumerate(rows) for v in row[i + 1 :])  # a causal model


def test_the_file_stays_small_whatever_is_shown(two):
    teacher, student, scenes = two
    everything = [pair(tap) for tap in (SELF, CROSS, IMAGE, TEXT)]
    found = compare_attention(
        student, teacher, everything, scenes.data, scenes.collator, n=60, max_samples=60, batch_size=60
    )
    assert 200_000 < len(json.dumps(found, ensure_ascii=False).encode()) <= LARGEST
    assert "left out to keep the file small" in found["notes"][-1]
    usual = compare_attention(student, teacher, everything, scenes.data, scenes.collator, max_samples=16)
    assert len(json.dumps(usual).encode()) < 100_000
    assert usual["notes"] == []


# What cannot be compared


def test_maps_over_other_positions_are_left_out_with_a_sentence(two):
    teacher, _, scenes = two
    finer = scenes.model(2, caption_queries=9)
    found = compare_attention(finer, teacher, [pair(CROSS), pair(TEXT)], scenes.data, scenes.collator, max_samples=8)
    assert [entry["student"] for entry in found["pairs"]] == [TEXT]
    (note,) = found["notes"]
    assert "18 in the student" in note
    assert "8 in the teacher" in note


def test_maps_over_another_grid_are_compared_when_they_are_resized(two):
    from potstill.losses import resize_attention

    _, _, scenes = two
    fine = scenes.model(0, stem="patch", patch_size=8)  # 6 x 6
    coarse = scenes.model(1, stem="patch", patch_size=16)  # 3 x 3
    plain, resized = (
        compare_attention(coarse, fine, [pair(IMAGE, resize=way)], scenes.data, scenes.collator, max_samples=8)
        for way in (None, lambda maps, shape: resize_attention(maps, tuple(shape[2:]), grid=(6, 6), to=(3, 3)))
    )
    assert plain["pairs"] == []
    assert "9 × 9 in the student, 36 × 36 in the teacher" in plain["notes"][0]
    assert resized["notes"] == []
    assert resized["shown"][0]["maps"][0]["grid"] == [3, 3]
    (span,) = resized["distance"]
    assert max(span["student_heads"]) < 2 < min(span["teacher_heads"])  # each in patches of its own grid


def test_maps_that_stop_to_fit_are_left_out_of_what_is_shown_too(two):
    teacher, student, scenes = two
    ways = iter([lambda maps: maps, lambda maps: maps[..., :-1]])
    pairs = [pair(CROSS, resize=lambda maps, shape: next(ways)(maps)), pair(TEXT)]
    found = compare_attention(student, teacher, pairs, scenes.data, scenes.collator, max_samples=8, batch_size=4)
    assert [entry["student"] for entry in found["pairs"]] == [TEXT]
    assert len(found["notes"]) == 1
    assert [[maps["pair"] for maps in sample["maps"]] for sample in found["shown"]] == [[0]] * len(found["shown"])
    assert found["shown"][0]["maps"][0]["kind"] == "words"


def test_a_tap_that_is_not_there_is_left_out_with_a_sentence(two):
    teacher, student, scenes = two
    pairs = [pair("text_decoder.blocks.9@attention"), pair("lm_head@attention"), pair(TEXT)]
    found = compare_attention(student, teacher, pairs, scenes.data, scenes.collator, max_samples=8)
    assert [entry["student"] for entry in found["pairs"]] == [TEXT]
    assert [note.split('"')[1] for note in found["notes"]] == ["text_decoder.blocks.9@attention", "lm_head@attention"]


def test_nothing_stays_on_the_models(two):
    teacher, student, scenes = two
    was = [m.training for m in student.modules()]
    compare_attention(student, teacher, [pair(CROSS)], scenes.data, scenes.collator, max_samples=8)
    for model in (student, teacher):
        assert not [n for n, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
        assert not [n for n, m in model.named_modules() if getattr(getattr(m, "config", None), "reading", None)]
    assert [m.training for m in student.modules()] == was


def test_a_module_that_does_not_run_is_left_out_with_a_sentence(tiny):
    model, batch = tiny("blip")  # has cross-attention that only its captioning sibling uses
    taps = [f"text_model.encoder.layer.3@{kind}_attention" for kind in ("self", "cross")]
    found = compare_attention(
        copy.deepcopy(model), model, [MapPair(t, t) for t in taps], [0, 1], lambda rows: batch, n=1
    )
    assert [entry["student"] for entry in found["pairs"]] == taps[:1]
    (note,) = found["notes"]
    assert taps[1] in note
    assert "did not both run" in note


# What other families' tokens are


@pytest.mark.parametrize(
    ("name", "tap", "axes", "kind"),
    [
        ("clip", "vision_model.encoder.layers.3@attention", ("picture", "picture"), "picture"),
        ("clip", "text_model.encoder.layers.3@attention", ("words", "words"), "words"),
        ("blip-caption", "text_decoder.bert.encoder.layer.3@cross_attention", ("words", "picture"), "picture"),
        ("vit-bert", "decoder.bert.encoder.layer.3@cross_attention", ("words", "picture"), "picture"),
        ("t5", "encoder.block.3@attention", ("words", "words"), "words"),
        ("t5", "decoder.block.3@cross_attention", ("words", "words"), "words"),
        ("vilt", "encoder.layer.3@attention", ("words and picture", "words and picture"), "picture"),
        ("llama", "model.layers.3@attention", ("words", "words"), "words"),
    ],
)
def test_words_and_places_are_told_apart_in_other_families(tiny, name, tap, axes, kind):
    model, batch = tiny(name)
    batch = dict(batch)
    if name == "t5":
        batch["decoder_input_ids"] = batch["decoder_input_ids"][:, :3]  # else one could be taken for the other
    found = compare_attention(
        copy.deepcopy(model), model, [MapPair(tap, tap)], [0, 1], lambda rows: batch, inputs=list(batch)
    )
    assert found["notes"] == []
    (entry,) = found["pairs"]
    assert (entry["queries"], entry["keys"]) == axes
    shown = [sample["maps"][0] for sample in found["shown"]]
    assert [maps["kind"] for maps in shown] == [kind, kind]
    if kind == "picture":
        assert shown[0]["grid"] == [2, 2]
        assert shown[0]["rows"][0]["query"] == ("CLS" if axes[0] == "picture" else "word 1")
    elif name == "t5" and "decoder" in tap:
        assert [len(maps["keys"]) for maps in shown] == [5, 4]  # the second text is padded by one
        assert [len(maps["queries"]) for maps in shown] == [3, 3]


# What the tokens of an axis are


@pytest.mark.parametrize(
    ("length", "text", "side", "is_visual", "expected"),
    [
        (12, 12, 6, False, Axis(text=12)),
        (36, None, 6, True, Axis(side=6)),
        (37, None, 6, True, Axis(extra=1, side=6)),
        (41, None, 6, True, Axis(extra=5, side=6)),  # CLS and four registers
        (49, 13, 6, False, Axis(text=13, side=6)),  # 49 is a square, but not of this model
        (50, 13, 6, False, Axis(text=13, extra=1, side=6)),
        (197, None, None, True, Axis(extra=1, side=14)),
        (36, 36, 6, True, Axis(side=6)),
        (35, None, 6, False, Axis()),
        (3, None, None, False, Axis()),
    ],
)
def test_tokens_are_told_apart_by_their_number(length, text, side, is_visual, expected):
    assert axis_of(length, text, side, is_visual=is_visual) == expected
