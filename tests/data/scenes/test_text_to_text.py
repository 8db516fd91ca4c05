import json

import numpy as np
import pytest
import torch

from potstill.data.scene_source import build_scenes
from potstill.data.scenes import SceneDataset, TextToTextCollator, build_tokenizer
from potstill.data.scenes.composer import POSITIONS
from potstill.data.scenes.splits import HELDOUT_DIRECTIONS
from potstill.data.scenes.text_to_text import FORMS, prompt_of
from potstill.errors import InputError, RecipeError

LANGUAGES = ("en", "de", "fr")
DIRECTIONS = ("en-de", "en-fr", "de-en", "fr-en")
TASKS = FORMS["text_to_text"]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(languages=(*LANGUAGES, "es"), prompts=True)


def samples(tasks, number=32, **options):
    return SceneDataset(tasks=tasks, size=number, **options).__getitems__(range(number))


def written(tokenizer, labels):
    return [tokenizer.decode(row[row != -100], skip_special_tokens=True) for row in labels]


def test_prompt_words_renumber_no_other_token():
    plain, with_prompts = build_tokenizer(), build_tokenizer(prompts=True)
    assert list(plain.get_vocab().items() - with_prompts.get_vocab().items()) == []
    assert min(with_prompts.get_vocab()[w] for w in with_prompts.get_vocab().keys() - plain.get_vocab()) == len(plain)


@pytest.mark.parametrize("languages", [LANGUAGES, ("zh",)])
def test_no_prompt_or_target_has_an_unknown_word(languages):
    rows = samples(TASKS, 800, languages=languages, concepts=300)
    collator = TextToTextCollator(build_tokenizer(300, languages, prompts=True), max_tokens=80)
    batch = collator(rows)
    texts = written(collator.tokenizer, batch["labels"])
    prompts = written(collator.tokenizer, batch["input_ids"].where(batch["attention_mask"].bool(), -100))
    for sample, prompt, text in zip(rows, prompts, texts):
        # Chinese has a token a character and comes back with spaces.
        assert prompt.replace(" ", "") == prompt_of(sample).replace(" ", "")
        assert text.replace(" ", "") == sample["truth"].removeprefix("[de] ").removeprefix("[fr] ").removeprefix(
            "[zh] "
        ).replace(" ", "")


def test_every_row_is_in_the_labels_of_its_task_and_of_no_other(tokenizer):
    rows = samples(TASKS, languages=LANGUAGES)
    batch = TextToTextCollator(tokenizer)(rows)
    for task in TASKS:
        for sample, own, all_of_it in zip(rows, batch[f"{task}_labels"], batch["labels"]):
            assert torch.equal(own, all_of_it) if sample["task"] == task else bool((own == -100).all())
    assert {sample["task"] for sample in rows} == set(TASKS)


def test_targets_end_with_one_end_token_and_pictures_lie_in_minus_one_to_one(tokenizer):
    batch = TextToTextCollator(tokenizer)(samples(TASKS, languages=LANGUAGES))
    assert ((batch["labels"] == tokenizer.eos_token_id).sum(1) == 1).all()
    lengths = (batch["labels"] != -100).sum(1)
    assert (batch["labels"].gather(1, lengths[:, None] - 1) == tokenizer.eos_token_id).all()
    assert batch["pixel_values"].shape == (32, 3, 48, 48)
    assert -1 <= batch["pixel_values"].min() < -0.5 < 0.5 < batch["pixel_values"].max() <= 1
    assert batch["pixel_values"].is_contiguous()


def test_the_concept_map_is_that_of_the_picture(tokenizer):
    rows = samples(("caption",), 3, masks=True)
    batch = TextToTextCollator(tokenizer)(rows)
    assert torch.equal(batch["concept_map"], torch.stack([torch.tensor(s["concept_map"][0]).long() for s in rows]))


def test_phrases_are_marked_at_their_last_token_in_the_prompt(tokenizer):
    rows = samples(("vqa", "entailment", "translation"), 300, languages=LANGUAGES, directions=DIRECTIONS, phrases=True)
    batch = TextToTextCollator(tokenizer)(rows)
    marked = 0
    for row, sample in enumerate(rows):
        found = [p for p in batch["phrase_places"][row].tolist() if p != -100]
        assert found == [places for _, places in sample["phrases"]]
        for place in (batch["phrase_places"][row] != -100).nonzero()[:, 0].tolist():
            words = tokenizer.decode(batch["input_ids"][row, : place + 1], skip_special_tokens=True)
            ends = [len(prompt_of(sample)) - len(sample["text"]) + end for end, _ in sample["phrases"]]
            assert len(words) in ends
            marked += 1
        if sample["task"] == "translation":
            assert not found
    assert marked > 60


def test_target_places_are_where_the_written_things_stand(tokenizer):
    tasks = ("caption", "vqa", "translation", "grounding")
    rows = samples(tasks, 400, languages=LANGUAGES, directions=DIRECTIONS, phrases=True)
    batch = TextToTextCollator(tokenizer)(rows)
    checked = set()
    for row, sample in enumerate(rows):
        places = batch["target_places"][row]
        assert places[batch["labels"][row] == -100].eq(-100).all()
        things = sample["scenes"][0].visible
        words = [tokenizer.decode([t]) for t in batch["labels"][row].tolist() if t != -100]
        if sample["task"] == "grounding":
            named = {t.concept for t in things}
            assert sum(set(places[places >= 0].tolist())) == sum(1 << t.cell for t in things)
            assert len(set(places[places >= 0].tolist())) == len(named)
        elif sample["task"] != "vqa":
            cells = [1 << t.cell for t in things]
            number = 0
            for word, place in zip(words, places.tolist()):
                number += word == ","
                assert place == (-100 if word in (",", "[EOS]") else cells[number])
        elif sample["kind"] in ("what", "colour"):
            cell = next(i for i, p in enumerate(POSITIONS) if p in sample["text"])
            assert set(places[places != -100].tolist()) == {1 << cell}
        elif sample["kind"] == "where":
            assert 1 << POSITIONS.index(sample["truth"]) == places[0]
        elif sample["kind"] == "background":
            assert places.eq(-100).all()
        checked.add((sample["task"], sample["kind"]))
    assert len(checked) == 1 + 8 + 4 + 1


def test_a_question_and_its_answer_fit_blip(tokenizer):
    rows = samples(("vqa", "entailment"))
    batch = TextToTextCollator(tokenizer, "question_answer")(rows)
    assert written(tokenizer, batch["input_ids"]) == [s["text"] for s in rows]
    assert written(tokenizer, batch["labels"]) == [s["truth"] for s in rows]
    mask = batch["decoder_attention_mask"].bool()
    assert (batch["decoder_input_ids"][:, 0] == tokenizer.bos_token_id).all()
    assert (batch["decoder_input_ids"][~mask] == tokenizer.pad_token_id).all()
    assert torch.equal(batch["labels"], batch["decoder_input_ids"].masked_fill(~mask, -100))
    assert ((batch["labels"] == tokenizer.eos_token_id).sum(1) == 1).all()


def test_a_caption_fits_blip(tokenizer):
    rows = samples(("caption",))
    batch = TextToTextCollator(tokenizer, "captioning")(rows)
    assert written(tokenizer, batch["input_ids"]) == [s["text"] for s in rows]
    mask = batch["attention_mask"].bool()
    assert torch.equal(batch["labels"], batch["input_ids"].masked_fill(~mask, -100))
    assert torch.equal(batch["labels"], batch["caption_labels"])
    assert (batch["input_ids"][:, 0] == tokenizer.bos_token_id).all()


def test_a_tokenizer_without_bos_uses_its_cls_and_sep(tmp_path):
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    words = "[PAD] [UNK] [CLS] [SEP] [MASK] what is in the top left right bottom ? where are how many there"
    words = words.split()
    letters = [chr(c) for c in range(97, 123)] + [f"##{chr(c)}" for c in range(97, 123)] + list("01234,")
    (tmp_path / "vocab.txt").write_text("\n".join([*words, *letters]))
    assert BertWordPieceTokenizer(str(tmp_path / "vocab.txt")).get_vocab_size()
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    source = build_scenes(form="question_answer", tasks=["vqa"], tokenizer=str(tmp_path))
    data = source.split("test", 8)
    batch = source.collator(data.__getitems__(range(8)))
    assert (batch["labels"][:, 0] == source.processor.cls_token_id).all()
    assert ((batch["labels"] == source.processor.sep_token_id).sum(1) == 1).all()
    assert source.model_fields["vocab_size"] == len(source.processor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "text_to_txt"}, 'Did you mean "text_to_text"'),
        ({"form": "text_to_text"}, "one picture, not two"),
        ({"form": "captioning", "tasks": ["vqa"]}, 'has no place for "vqa"'),
        ({"form": "text_to_text", "tasks": "vqa", "tokenizer": "./nowhere"}, "tokenizer"),
        ({"tokenizer": "coca-scenes"}, "form"),
    ],
)
def test_wrong_forms_are_named(options, message):
    with pytest.raises(RecipeError, match=message):
        build_scenes(**options)


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(RecipeError, match="no tokenizer can be read"):
        build_scenes(form="text_to_text", tasks=["vqa"], tokenizer=str(tmp_path))


def test_the_packaged_tokenizer_can_be_named():
    source = build_scenes(form="question_answer", tasks=["vqa"], tokenizer="coca-scenes")
    data = source.split("test", 40)
    assert source.collator(data.__getitems__(range(40)))["input_ids"].shape[0] == 40


def test_wrong_samples_are_refused(tokenizer):
    with pytest.raises(InputError, match="nlvr2"):
        TextToTextCollator(tokenizer)(samples(("nlvr2",), 2))
    with pytest.raises(InputError, match="longer than max_tokens"):
        TextToTextCollator(tokenizer, max_tokens=3)(samples(("vqa",), 8))
    with pytest.raises(InputError, match="outside the vocabulary"):
        TextToTextCollator(build_tokenizer(20))(samples(("vqa",), 8))


def test_a_held_out_direction_never_occurs_in_training_and_always_in_its_split():
    train = samples(("translation",), 400, languages=LANGUAGES, directions=DIRECTIONS)
    assert {s["kind"] for s in train} == set(DIRECTIONS)
    assert not {s["kind"] for s in samples(("translation",), 100, languages=LANGUAGES)} & set(HELDOUT_DIRECTIONS)
    held = samples(("translation",), 400, split="heldout_directions")
    assert {s["kind"] for s in held} == set(HELDOUT_DIRECTIONS)
    for sample in held:
        source, target = sample["kind"].split("-")
        concepts = [t.concept for t in sample["scenes"][0].visible]
        named = SceneDataset(size=1).concepts
        assert sample["text"] == ", ".join(named[c].names[source] for c in concepts)
        assert sample["truth"] == ", ".join(named[c].names[target] for c in concepts)


@pytest.mark.parametrize("direction", HELDOUT_DIRECTIONS)
def test_training_on_a_held_out_direction_is_refused(direction):
    with pytest.raises(InputError, match="kept back"):
        SceneDataset(tasks=("translation",), languages=LANGUAGES, directions=("en-de", direction))


@pytest.mark.parametrize("wrong", ["de-de", "en-xx", "german", "en_de", ""])
def test_a_direction_that_is_none_is_refused(wrong):
    with pytest.raises(InputError, match="direction"):
        SceneDataset(tasks=("translation",), directions=(wrong,))


def test_the_source_measures_what_it_trains_and_the_held_out_directions():
    options = {"form": "text_to_text", "tasks": ["vqa", "translation"], "directions": "de-en"}
    source = build_scenes(**options, languages=["en", "de", "fr"])
    assert {s["kind"] for s in map(source.split("test", 40).__getitem__, range(40)) if s["task"] == "translation"} == {
        "de-en"
    }
    held = source.split("heldout_directions", 20)
    assert {s["task"] for s in map(held.__getitem__, range(20))} == {"translation"}
    assert source.describe()["directions"] == ["de-en"]
    with pytest.raises(RecipeError, match="has no words of fr"):
        build_scenes(**options).split("heldout_directions", 20)


@pytest.fixture
def model_folder(tmp_path):
    """A folder with the scenes' tokenizer, and a function that writes how its model has its pictures."""
    build_tokenizer(prompts=True).save_pretrained(tmp_path)

    def write(**config):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
        return str(tmp_path)

    return write


def pictures(folder, image_size=48):
    options = {"tasks": ["vqa"], "form": "question_answer", "image_size": image_size}
    source = build_scenes(**options, tokenizer=folder)
    rows = source.split("test", 4).__getitems__(range(4))
    plain = torch.tensor(np.stack([s["images"][0] for s in rows])).permute(0, 3, 1, 2) / 255
    return source, plain, source.collator(rows)["pixel_values"]


def test_pictures_are_prepared_as_the_folder_of_the_tokenizer_says(model_folder):
    folder = model_folder(size={"height": 96, "width": 96}, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.4, 0.2])
    source, plain, made = pictures(folder)
    assert source.model_fields["image_size"] == 96
    assert made.shape == (4, 3, 96, 96)
    back = made * torch.tensor([0.5, 0.4, 0.2]).view(3, 1, 1) + torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    # Enlarged and averaged again, a picture is what it was but for the smoothing.
    assert (torch.nn.functional.avg_pool2d(back, 2) - plain).abs().mean() < 0.02


@pytest.mark.parametrize("size", [48, {"shortest_edge": 48}])
def test_pictures_of_the_right_size_are_only_normalised(model_folder, size):
    _, plain, made = pictures(model_folder(size=size, image_mean=[0.0] * 3, image_std=[1.0] * 3))
    torch.testing.assert_close(made, plain)


@pytest.mark.parametrize(
    "config",
    [{"size": {"height": 96, "width": 64}}, {}, {"size": 96, "image_mean": [0.5]}, {"size": 96, "rescale_factor": 1.0}],
)
def test_pictures_that_the_scenes_cannot_give_are_refused(model_folder, config):
    with pytest.raises(RecipeError, match=r"preprocessor_config\.json"):
        pictures(model_folder(**config))


def test_a_damaged_preprocessor_is_named(model_folder, tmp_path):
    folder = model_folder()
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(RecipeError, match="cannot be read"):
        pictures(folder)
