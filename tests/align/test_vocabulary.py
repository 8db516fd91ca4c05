import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from potstill.align.vocabulary import check_vocabularies, tokenizer_hash
from potstill.errors import ShapeError

WORDS = ["[UNK]", "[PAD]", "a", "red", "fox", "dog"]


def make(words=WORDS, *, lower=False, extra=()):
    inside = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inside.pre_tokenizer = pre_tokenizers.Whitespace()
    if lower:
        inside.normalizer = normalizers.Lowercase()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inside, unk_token="[UNK]", pad_token="[PAD]")
    tokenizer.add_tokens(list(extra))
    return tokenizer


class Letters:
    """A tokenizer in plain Python."""

    def __init__(self, shift=0):
        self.shift = shift

    def get_vocab(self):
        return {chr(97 + i): i for i in range(26)}

    def encode(self, text):
        return [(ord(c) - 97 + self.shift) % 26 for c in text.lower() if c.isascii() and c.isalpha()]


def test_one_tokenizer_shares_all_rows():
    assert check_vocabularies(make(), make(), 6, 6) == 6


def test_padded_output_layers_share_the_common_prefix():
    assert check_vocabularies(make(), make(), 8, 12) == 8
    assert check_vocabularies(make(), make(), 151_936, 152_064) == 151_936


def test_padding_and_truncation_settings_do_not_change_the_hash():
    plain, set_up = make(), make()
    set_up.backend_tokenizer.enable_padding(length=9)
    set_up.backend_tokenizer.enable_truncation(4)
    assert tokenizer_hash(plain) == tokenizer_hash(set_up)


def test_the_hash_sees_words_rules_and_added_tokens():
    variants = [make(), make(lower=True), make([*WORDS, "cat"]), make(extra=["<x>"]), Letters(), Letters(1)]
    assert len({tokenizer_hash(t) for t in variants}) == len(variants)


def test_a_token_that_only_one_side_has_ends_the_common_prefix():
    assert check_vocabularies(make(), make(extra=["<image>"]), 10, 12) == 6
    assert check_vocabularies(make(extra=["<a>", "<b>"]), make(extra=["<a>"]), 10, 12) == 7


def test_different_words_are_refused_with_the_first_id_and_both_sizes():
    with pytest.raises(
        ShapeError,
        match=r"id 3 is 'blue' to the student and 'red' to the teacher \(student 6 rows, teacher 1,000\)",
    ):
        check_vocabularies(make(["[UNK]", "[PAD]", "a", "blue"]), make(), 6, 1000)


def test_equal_words_under_different_rules_are_refused():
    with pytest.raises(ShapeError, match=r"cut text differently.*student 6 rows, teacher 7"):
        check_vocabularies(make(), make(lower=True), 6, 7)


def test_plain_python_tokenizers_are_compared_by_what_they_do():
    assert check_vocabularies(Letters(), Letters(), 26, 30) == 26
    with pytest.raises(ShapeError, match="cut text differently"):
        check_vocabularies(Letters(), Letters(1), 26, 26)


def test_an_output_layer_smaller_than_its_tokenizer_is_refused():
    with pytest.raises(ShapeError, match=r"vocab: the teacher's tokenizer uses 6 ids but its output layer has 5 rows"):
        check_vocabularies(make(), make(), 6, 5, where="vocab")
