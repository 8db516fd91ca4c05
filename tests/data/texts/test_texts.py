"""The shipped texts: what a sample and a batch are, and what is refused."""

import gzip
import hashlib
import json

import pytest
import torch

from potstill.data.texts import PACK, TextCollator, TextDataset, read_pack
from potstill.data.texts_source import build_texts
from potstill.errors import InputError, IntegrityError, RecipeError
from text_models import byte_tokenizer, llama, save_pair

SAMPLES = [
    {"index": 0, "prompt": "What?", "text": "That.", "domain": 0},
    {"index": 1, "prompt": "Who was it that came?", "text": "She", "domain": 3},
]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return save_pair(tmp_path_factory.mktemp("pair") / "llama")


def pack_of(folder, rows, name="own"):
    """A pack of one domain."""
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    folder.mkdir()
    (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(data))
    entry = {"name": name, "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "pack.json").write_text(json.dumps({"domains": [entry]}))
    return folder


def rows_of(texts, split="train"):
    return [{"prompt": f"Say {i}", "text": text, "split": split} for i, text in enumerate(texts)]


def test_there_are_several_domains_and_no_text_is_in_two_splits():
    pack = read_pack()
    assert len(pack.domains) >= 5
    splits = {name: TextDataset(name) for name in ("train", "validation", "test")}
    assert {row["kind"] for row in splits["test"].rows} == set(pack.domains)
    seen = [{row["text"] for row in data.rows} for data in splits.values()]
    assert sum(map(len, seen)) == len(set.union(*seen))
    assert len(splits["train"]) > 8000


def test_every_domain_names_its_source_and_its_licence_is_there():
    entries = json.loads((PACK / "pack.json").read_text())["domains"]
    texts = {path.stem for path in (PACK / "licenses").glob("*.txt")}
    for entry in entries:
        assert any(name in entry["source"] for name in texts), entry["source"]


def test_domains_are_numbered_as_they_are_asked_for():
    data = TextDataset("test", domains=["words", "graphs"])
    assert {(row["domain"], row["kind"]) for row in data.rows} == {(0, "words"), (1, "graphs")}


def test_the_seed_moves_training_samples_only():
    assert TextDataset("train", 50, 1).rows != TextDataset("train", 50, 2).rows
    assert TextDataset("test", 50, 1).rows == TextDataset("test", 50, 2).rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domains": ["word"]}, "Did you mean"),
        ({"domains": []}, "at least one"),
        ({"domains": ["words", "words"]}, "none twice"),
        ({"size": 0}, "at least 1"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        TextDataset("train", **options)


def test_labels_are_the_text_and_its_end_and_nothing_else(tokenizer):
    batch = TextCollator(tokenizer)(SAMPLES)
    for row, sample in enumerate(SAMPLES):
        learnt = batch["labels"][row][batch["labels"][row] != -100]
        assert tokenizer.decode(learnt) == sample["text"] + "<|end|>"
        seen = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        assert tokenizer.decode(seen) == f"{sample['prompt']}\n{sample['text']}<|end|>"
        counts = batch["labels"][row] != -100
        assert torch.equal(batch["labels"][row][counts], batch["input_ids"][row][counts])
    assert batch["domain"].tolist() == [0, 3]
    first = batch["attention_mask"][0]
    assert torch.equal(first, first.sort(descending=True).values)  # padded on the right


def test_in_a_chat_everything_but_the_answer_is_prompt(tokenizer):
    batch = TextCollator(tokenizer, chat=True)(SAMPLES)
    seen = tokenizer.decode(batch["input_ids"][0][batch["attention_mask"][0].bool()])
    assert seen == "<|user|>What?<|end|><|assistant|>That.<|end|>"
    learnt = batch["labels"][0][batch["labels"][0] != -100]
    assert tokenizer.decode(learnt) == "That.<|end|>"


def test_without_a_padding_token_the_end_token_pads_but_only_the_real_one_is_learnt():
    tokenizer = byte_tokenizer(pad=None)
    batch = TextCollator(tokenizer)(SAMPLES)
    end = tokenizer.eos_token_id
    assert (batch["labels"] == end).sum(1).tolist() == [1, 1]
    assert (batch["input_ids"][0] == end).sum() > 1
    assert batch["attention_mask"][0].sum() == len("What?\nThat.") + 1


def test_prompts_to_write_from_are_padded_on_the_left_and_end_where_the_text_begins(tokenizer):
    collator = TextCollator(tokenizer)
    asked, batch = collator.prompts(SAMPLES), collator(SAMPLES)
    for row in range(2):
        ids = asked["input_ids"][row][asked["attention_mask"][row].bool()]
        start = int((batch["labels"][row] != -100).nonzero()[0])
        assert torch.equal(ids, batch["input_ids"][row, :start])
        assert asked["attention_mask"][row, -1] == 1


def test_padding_changes_nothing_that_a_model_says(tokenizer):
    model, collator = llama(), TextCollator(tokenizer)
    both, alone = collator(SAMPLES), collator(SAMPLES[:1])
    with torch.no_grad():
        together = model(both["input_ids"], attention_mask=both["attention_mask"]).logits[0]
        single = model(alone["input_ids"], attention_mask=alone["attention_mask"]).logits[0]
    torch.testing.assert_close(together[: len(single)], single, atol=1e-5, rtol=1e-5)


def test_a_long_text_is_cut_and_then_has_no_end(tokenizer):
    batch = TextCollator(tokenizer, 8)(SAMPLES[:1])
    assert batch["input_ids"].shape == (1, 8)
    learnt = batch["labels"][0][batch["labels"][0] != -100]
    assert tokenizer.decode(learnt) == "Th"


def test_a_prompt_longer_than_the_context_is_named(tokenizer):
    with pytest.raises(InputError, match="longer than the context") as caught:
        TextCollator(tokenizer, 6)(SAMPLES)
    assert caught.value.got == 6
    assert "What?" in str(caught.value)


def test_an_empty_text_is_refused_in_a_batch(tokenizer):
    with pytest.raises(InputError, match=r"sample 7.*empty"):
        TextCollator(tokenizer)([{"index": 7, "prompt": "a", "text": "", "domain": 0}])


def test_tokenizers_that_cannot_end_or_chat_are_refused():
    with pytest.raises(InputError, match="no end token"):
        TextCollator(byte_tokenizer(end=None))
    with pytest.raises(InputError, match="no chat template"):
        TextCollator(byte_tokenizer(template=None), chat=True)


def test_empty_texts_of_a_pack_are_left_out_and_counted(pair, tmp_path):
    folder = pack_of(tmp_path / "pack", rows_of(["one", " ", "two", ""]))
    with pytest.warns(UserWarning, match="2 of 4 training texts are empty"):
        source = build_texts(tokenizer=pair, pack=str(folder))
    assert source.facts["empty_texts"] == 2
    assert {source.split("train")[i]["text"] for i in range(2)} == {"one", "two"}


def test_a_pack_of_nothing_but_empty_texts_is_refused(pair, tmp_path):
    folder = pack_of(tmp_path / "pack", rows_of(["", " "]))
    with pytest.raises(InputError, match="holds no text"):
        build_texts(tokenizer=pair, pack=str(folder))


def test_a_damaged_pack_is_refused(tmp_path):
    folder = pack_of(tmp_path / "pack", rows_of(["one"]))
    (folder / "own.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "a", "text": "b", "split": "train"}\n'))
    with pytest.raises(IntegrityError, match="not the expected file"):
        read_pack(folder)
    (folder / "own.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(IntegrityError, match="cannot be read"):
        read_pack(folder)


def test_the_source_says_what_a_model_for_it_needs(pair):
    source = build_texts(teacher_model=pair, domains=["facts"], max_tokens=64)
    assert source.facts["domains"] == ["facts"]
    assert source.facts["tokenizer"] == pair
    assert source.model_fields["vocab_size"] == 260
    assert source.model_fields["pad_token_id"] == 0
    batch = source.example()
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape


def test_a_prompt_that_does_not_fit_is_refused_when_the_source_is_made(pair):
    with pytest.raises(InputError, match="longer than the context"):
        build_texts(tokenizer=pair, domains=["numerics"], max_tokens=24)


def test_without_teacher_and_tokenizer_there_are_no_tokens(tmp_path):
    with pytest.raises(RecipeError, match="no teacher"):
        build_texts()
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match="no tokenizer can be read"):
        build_texts(tokenizer=str(tmp_path / "empty"))
