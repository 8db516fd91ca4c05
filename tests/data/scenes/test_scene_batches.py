import pytest
import torch

from potstill.data.scenes import SceneCollator, SceneDataset, build_tokenizer, contact_sheet
from potstill.errors import InputError, ShapeError


@pytest.fixture(scope="module")
def data():
    return SceneDataset(size=4000)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def collator(data, tokenizer):
    return SceneCollator(tokenizer, data.task_labels)


def of_task(data, task, number=4):
    return data.__getitems__([i for i in range(200) if data.tasks_of([i]) == [task]][:number])


def test_special_tokens_have_the_first_numbers(tokenizer):
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[BOS]", "[EOS]", "[UNK]"]) == [0, 1, 2, 3]
    assert tokenizer.pad_token_id == 0
    assert 250 < len(tokenizer) < 500


def test_the_vocabulary_is_the_same_every_time():
    assert build_tokenizer(40, ("en", "de")).get_vocab() == build_tokenizer(40, ("de",)).get_vocab()


@pytest.mark.parametrize("languages", [("en",), ("en", "de", "fr", "es", "zh")])
def test_no_word_of_any_task_is_unknown(languages):
    concepts = 700
    tasks = ("caption", "vqa", "vqa", "entailment", "nlvr2", "retrieval")
    data = SceneDataset(tasks=tasks, size=6000, concepts=concepts, languages=languages)
    tokenizer = build_tokenizer(concepts, languages)
    texts = [s["text"] for s in data.__getitems__(range(6000))]
    rows = [e.ids for e in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]
    assert [t for t, row in zip(texts, rows) if tokenizer.unk_token_id in row] == []
    assert max(map(len, rows)) <= (31 if languages == ("en",) else 60)


def test_text_comes_back_from_its_tokens(data, tokenizer):
    for sample in data.__getitems__(range(200)):
        ids = tokenizer(sample["text"])["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == sample["text"]


def test_the_tokenizer_survives_saving(tmp_path, data, tokenizer):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = data[0]["text"]
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_the_batch_has_the_agreed_keys_shapes_and_types(data, collator):
    samples = data.__getitems__(range(16))
    batch = collator(samples)
    T = batch["input_ids"].shape[1]
    expected = {
        "pixel_values": ((16, 2, 3, 48, 48), torch.float32),
        "image_mask": ((16, 2), torch.bool),
        "input_ids": ((16, T), torch.long),
        "attention_mask": ((16, T), torch.long),
        "caption_labels": ((16, T), torch.long),
        "vqa_labels": ((16,), torch.long),
        "entailment_labels": ((16,), torch.long),
        "nlvr2_labels": ((16,), torch.long),
        "sample_id": ((16,), torch.long),
    }
    assert {key: (tuple(value.shape), value.dtype) for key, value in batch.items()} == expected
    assert batch["pixel_values"].is_contiguous()
    assert batch["sample_id"].tolist() == list(range(16))


def test_pixels_run_from_minus_one_to_one_and_absent_images_are_zero(data, collator):
    samples = data.__getitems__(range(16))
    batch = collator(samples)
    for row, sample in enumerate(samples):
        count = len(sample["images"])
        assert batch["image_mask"][row].tolist() == [True, count == 2]
        expected = torch.from_numpy(sample["images"]).permute(0, 3, 1, 2).double() / 127.5 - 1
        torch.testing.assert_close(batch["pixel_values"][row, :count].double(), expected, atol=1e-6, rtol=0)
        assert (batch["pixel_values"][row, count:] == 0).all()


def test_without_pairs_there_is_one_image(data, collator):
    assert collator(of_task(data, "caption"))["pixel_values"].shape[1] == 1


def test_caption_labels_are_the_next_tokens(data, collator, tokenizer):
    batch = collator(of_task(data, "caption"))
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["caption_labels"]):
        length = int(mask.sum())
        assert ids[0] == tokenizer.bos_token_id
        assert labels[: length - 1].tolist() == ids[1:length].tolist()
        assert labels[length - 1] == tokenizer.eos_token_id
        assert (labels[length:] == -100).all()
        assert (ids[length:] == tokenizer.pad_token_id).all()


def test_each_row_has_labels_of_its_own_task_only(data, collator):
    samples = data.__getitems__(range(40))
    batch = collator(samples)
    for row, sample in enumerate(samples):
        for task in ("vqa", "entailment", "nlvr2"):
            assert batch[f"{task}_labels"][row] == (sample["label"] if sample["task"] == task else -100)
        assert (batch["caption_labels"][row] != -100).any() == (sample["task"] == "caption")
        last = batch["input_ids"][row, int(batch["attention_mask"][row].sum()) - 1]
        assert (last == collator.tokenizer.eos_token_id) == (sample["task"] != "caption")


def test_concept_maps_come_along_when_the_dataset_gives_them(tokenizer):
    data = SceneDataset(size=8, masks=True)
    batch = SceneCollator(tokenizer, data.task_labels)(data.__getitems__(range(8)))
    assert batch["concept_map"].shape == (8, 2, 48, 48)
    assert batch["concept_map"].dtype == torch.long
    assert (batch["concept_map"][~batch["image_mask"]] == -100).all()
    assert batch["concept_map"].max() >= 0


def test_words_outside_the_vocabulary_are_refused():
    data = SceneDataset(size=60, concepts=96)
    collator = SceneCollator(build_tokenizer(20), data.task_labels)
    with pytest.raises(InputError, match="outside the vocabulary"):
        collator(data.__getitems__(range(60)))


def test_a_label_outside_the_classes_is_refused(data, tokenizer):
    small = SceneDataset(size=1, concepts=12)
    with pytest.raises(InputError, match="same number of concepts"):
        SceneCollator(tokenizer, small.task_labels)(of_task(data, "vqa", 40))


def test_a_text_that_is_too_long_is_refused_not_cut(data, tokenizer):
    with pytest.raises(InputError, match="longer than max_tokens"):
        SceneCollator(tokenizer, data.task_labels, max_tokens=4)(data.__getitems__(range(8)))


def test_pictures_of_two_sizes_do_not_go_into_one_batch(data, collator):
    with pytest.raises(ShapeError, match="differ in size"):
        collator([data[0], SceneDataset(size=1, image_size=64)[0]])


def test_translation_has_no_place_in_the_batch(collator):
    data = SceneDataset(tasks=("translation",), size=2, languages=("de",))
    tokenizer = build_tokenizer(languages=("en", "de"))
    with pytest.raises(InputError, match="translation"):
        SceneCollator(tokenizer, data.task_labels)(data.__getitems__(range(2)))


@pytest.mark.parametrize("task", ["caption", "vqa", "entailment", "nlvr2", None])
def test_a_contact_sheet_shows_the_samples(data, task):
    sheet = contact_sheet(data, task, 5)
    assert sheet.width > 300
    assert len(sheet.getcolors(1 << 20)) > 50


def test_a_contact_sheet_of_a_task_that_is_not_there_is_refused(data):
    with pytest.raises(InputError, match="segmentation"):
        contact_sheet(data, "segmentation")
