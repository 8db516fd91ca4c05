import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.align.vocabulary import tokenizer_hash
from potstill.data.texts import byte_tokenizer
from potstill.data.token_sets import load_tokenizer, train_bpe
from potstill.errors import InputError, RecipeError
from potstill.losses import SpecialToken, boundary_mask, token_bytes

TEXTS = ["the cat sat on the mat"] * 3 + ["a dog and the dogs of Köln"] * 4


def test_special_tokens_in_a_text_are_plain_text():
    assert BPE.eos_token_id not in BPE("a <|end|> b")["input_ids"]


def test_trained_tokenizer_is_always_the_same_and_reads_everything():
    one, other = train_bpe(TEXTS, 280), train_bpe(TEXTS, 280)
    assert tokenizer_hash(one) == tokenizer_hash(other)
    assert len(one) == 280
    assert len(one("the cat sat")["input_ids"]) < len("the cat sat")
    assert one.decode(one("東京 \t x")["input_ids"]) == "東京 \t x"


def test_vocabulary_too_small_for_bytes_is_refused():
    with pytest.raises(InputError, match="at least 259"):
        train_bpe(TEXTS, 256)


@given(text=st.text(max_size=30))
def test_bytes_of_the_tokens_are_those_of_the_text(text):
    text = text.encode("utf-8", "replace").decode()
    for tokenizer in (byte_tokenizer(), BPE):
        rows = token_bytes(tokenizer)
        assert b"".join(rows[i] for i in tokenizer(text)["input_ids"]) == text.encode()


BPE = train_bpe(TEXTS, 280)


def test_tokenizers_are_loaded_by_name(tmp_path):
    assert tokenizer_hash(load_tokenizer("bytes")) == tokenizer_hash(byte_tokenizer())
    BPE.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert tokenizer_hash(loaded) == tokenizer_hash(BPE)
    assert loaded("a <|end|>")["input_ids"] == BPE("a <|end|>")["input_ids"]
    assert len(load_tokenizer("vl-t5-scenes")) > 100
    assert tokenizer_hash(load_tokenizer("bpe-280", texts=TEXTS)) == tokenizer_hash(BPE)


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"data\.tokenizer: no tokenizer can be read there"):
        load_tokenizer(tmp_path, where="data.tokenizer")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(RecipeError, match="no tokenizer can be read"):
        load_tokenizer(tmp_path)


def test_boundaries_are_spaces_and_special_tokens():
    mask = boundary_mask(BPE)
    vocabulary = BPE.get_vocab()
    assert mask.shape == (280,)
    assert mask[vocabulary["Ġ"]]
    assert mask[vocabulary["<|end|>"]]
    assert not mask[vocabulary["the"]]
    bytes_of = token_bytes(byte_tokenizer())
    assert [bytes_of[i] for i in boundary_mask(byte_tokenizer()).nonzero()[4:, 0]] == [b"\t", b"\n", b" "]


class Listed:
    """A tokenizer as one in pure Python looks from outside."""

    pad_token, unk_token, all_special_tokens = "<pad>", "<unk>", ("<pad>", "<unk>")

    def __init__(self, *words):
        self.words = words

    def get_vocab(self):
        return {word: i for i, word in enumerate(self.words)}


def test_other_ways_of_writing_bytes():
    rows = token_bytes(Listed("<pad>", "<unk>", "<0x0A>", "▁the", "s"))
    assert rows == [SpecialToken("pad"), SpecialToken("unk"), b"\n", b" the", b"s"]
    assert token_bytes(Listed("the", "##s", "<pad>"))[:2] == [b" the", b"s"]
    assert token_bytes(Listed("the", "é"))[1] == "é".encode()
    characters = Listed(*(chr(b) for b in range(256)), "<pad>")
    assert token_bytes(characters)[0xE9] == b"\xe9"


def test_gap_in_the_ids_is_padding_and_no_boundary():
    class Gap(Listed):
        def get_vocab(self):
            return {"a": 0, " b": 2}

    assert token_bytes(Gap()) == [b"a", SpecialToken("pad"), b" b"]
    assert boundary_mask(Gap()).tolist() == [False, False, True]


def test_a_tokenizer_without_a_vocabulary_is_refused():
    with pytest.raises(InputError, match="shows no vocabulary"):
        boundary_mask(object())
