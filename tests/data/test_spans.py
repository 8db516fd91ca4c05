"""Phrases of texts and the tokens they are made of."""

import copy
import doctest
import importlib
import pickle

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from potstill.data.spans import SpanCollator, mark_spans, phrase_spans, span_ids_of, token_pieces
from potstill.errors import InputError
from text_models import byte_tokenizer


def phrases(text):
    return [text[start:end] for start, end in phrase_spans(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" .,; ", []),
        ("word", ["word"]),
        ("The cat sat on the mat.", ["The cat sat", "on the mat"]),
        ("It's a well-known fact", ["It's", "a well-known fact"]),
        ("one two (three four) five", ["one two", "three four", "five"]),
        ("of the", ["of the"]),
        ("first line\nsecond line", ["first line", "second line"]),
        ("über die Brücke, ja", ["über die Brücke", "ja"]),
        ("x = f(y)", ["x", "f", "y"]),
    ],
)
def test_a_phrase_is_function_words_and_then_others(text, expected):
    assert phrases(text) == expected


def test_the_example_in_the_docstring_runs():
    failed, tried = doctest.testmod(importlib.import_module("potstill.data.spans"))
    assert tried > 0
    assert failed == 0


def pieces_of_words():
    """A tokenizer whose tokens carry their space in front, and whose texts begin without one."""
    words = ["[end]", "▁the", "▁old", "▁ox", "en", "▁ran", ".", "▁on"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[end]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.Metaspace()
    inner.add_special_tokens(["[end]"])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="[end]", unk_token="[end]")


def test_pieces_keep_the_spaces_that_a_tokenizer_drops_at_the_start():
    tokenizer = pieces_of_words()
    assert token_pieces([1, 3, 4], tokenizer) == ["the", " ox", "en"]
    assert "".join(token_pieces([1, 2, 3, 4, 5, 6], tokenizer)) == "the old oxen ran."
    assert token_pieces([], tokenizer) == []


def test_tokens_belong_to_the_phrase_they_begin_in():
    tokenizer = pieces_of_words()
    ids = [1, 2, 3, 4, 5, 7, 1, 3, 6, 0, 5]
    assert span_ids_of(ids, tokenizer) == [0, 0, 0, 0, 0, 1, 1, 1, -1, -1, 2]


def test_bytes_of_one_letter_stay_together():
    tokenizer, text = byte_tokenizer(), "The café – naïve."
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) == len(text.encode())
    found = span_ids_of(ids, tokenizer)
    owners = [i for i, c in enumerate(text) for _ in c.encode()]  # the character of every byte
    spans = phrase_spans(text)
    expected = [next((n for n, (s, e) in enumerate(spans) if s <= o < e), -1) for o in owners]
    assert found == expected
    assert set(expected) == {-1, 0, 1}


def test_a_letter_comes_with_its_last_token():
    tokenizer = byte_tokenizer()
    pieces = token_pieces(tokenizer("aé–漢字.", add_special_tokens=False).input_ids, tokenizer)
    assert pieces == ["a", "", "é", "", "", "–", "", "", "漢", "", "", "字", "."]
    assert token_pieces(tokenizer("aé", add_special_tokens=False).input_ids[:2], tokenizer) == ["a", ""]


def test_a_slow_tokenizer_gives_the_same_pieces():
    fast = byte_tokenizer()

    class Slow:
        is_fast, all_special_ids = False, fast.all_special_ids

        def decode(self, ids, **options):
            return fast.decode(ids, **options)

    ids = [*fast("A cat, here", add_special_tokens=False).input_ids, fast.eos_token_id]
    assert token_pieces(ids, Slow()) == token_pieces(ids, fast)
    assert span_ids_of(ids, Slow()) == span_ids_of(ids, fast)


def collate(samples):
    tokenizer = byte_tokenizer()
    rows = [tokenizer(text, add_special_tokens=False).input_ids for text in samples]
    L = max(map(len, rows))
    ids = torch.tensor([row + [0] * (L - len(row)) for row in rows])
    labels = ids.masked_fill(ids == 0, -100)
    labels[:, :4] = -100
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}


def test_the_collator_marks_what_is_learnt_and_nothing_else():
    batch = SpanCollator(collate, byte_tokenizer())(["pre the ox of old", "pre a b"])
    assert batch["span_ids"].shape == batch["input_ids"].shape
    assert (batch["span_ids"][batch["labels"] == -100] == -1).all()
    assert batch["span_ids"][0, 4:].tolist() == [0] * 6 + [-1] + [1] * 6
    assert {"input_ids", "attention_mask", "labels"} < batch.keys()


def test_a_batch_can_be_marked_anew():
    collator = SpanCollator(collate, byte_tokenizer())
    batch = collator(["pre the ox of old"])
    assert torch.equal(collator.remade["span_ids"](batch), batch["span_ids"])
    assert torch.equal(mark_spans(batch, byte_tokenizer()), batch["span_ids"])


def test_another_rule_can_be_given():
    batch = SpanCollator(collate, byte_tokenizer(), lambda text: [(0, len(text))])(["pre of the ox. On"])
    assert (batch["span_ids"][0, 4:] == 0).all()


def test_it_can_be_asked_what_the_other_collator_can_be_asked_and_copied():
    class Other:
        metrics = "own"

        def __call__(self, samples):
            return collate(samples)

    collator = SpanCollator(Other(), byte_tokenizer())
    assert collator.metrics == "own"
    assert copy.copy(collator).metrics == "own"
    with pytest.raises(AttributeError):
        _ = collator.nothing
    again = pickle.loads(pickle.dumps(SpanCollator(collate, byte_tokenizer())))
    assert torch.equal(again(["pre the ox"])["span_ids"], collator(["pre the ox"])["span_ids"])


def test_a_batch_without_tokens_is_refused():
    with pytest.raises(InputError, match='no "labels"'):
        mark_spans({"input_ids": torch.zeros(1, 2).long()}, byte_tokenizer())
