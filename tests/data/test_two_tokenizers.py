import pickle

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from potstill.align import SpecialToken, token_bytes
from potstill.data.two_tokenizers import TwoTokenizerCollator
from potstill.errors import InputError
from two_vocabularies import BPE, BYTES, Rows, Samples, collator

SAMPLES = Samples()


def texts_of(batch, row, tokenizer, ids, chunks):
    """Return the bytes of each chunk of one row, as one side reads them; an end token as itself."""
    numbers, rows = batch[chunks][row], token_bytes(tokenizer)
    found = []
    for n in range(int(numbers.max()) + 1):
        tokens = [rows[i] for i in batch[ids][row][numbers == n].tolist()]
        found.append(b"<|end|>" if tokens == [SpecialToken("eos")] else b"".join(tokens))
    return found


def test_both_sides_of_every_chunk_are_the_same_text():
    batch = collator()(SAMPLES[:4])
    for row in range(4):
        own = texts_of(batch, row, BYTES, "input_ids", "student_chunks")
        other = texts_of(batch, row, BPE, "teacher_input_ids", "teacher_chunks")
        assert own == other
        assert b"".join(own).decode() == SAMPLES[row]["text"] + "<|end|>"
        assert len(own) < len(SAMPLES[row]["text"])


def test_only_learnt_tokens_are_in_chunks():
    batch = collator()(SAMPLES[:4])
    assert torch.equal(batch["student_chunks"] >= 0, batch["labels"] != -100)
    assert torch.equal(batch["teacher_chunks"] >= 0, batch["teacher_labels"] != -100)
    assert torch.equal(batch["labels"], Rows(BYTES)(SAMPLES[:4])["labels"])


def test_each_side_reads_its_own_tokens():
    batch, own, other = collator()(SAMPLES[:3]), Rows(BYTES)(SAMPLES[:3]), Rows(BPE)(SAMPLES[:3])
    for key in ("input_ids", "attention_mask"):
        assert torch.equal(batch[key], own[key])
        assert torch.equal(batch[f"teacher_{key}"], other[key])
    assert torch.equal(batch["sample_id"], own["sample_id"])


@pytest.mark.parametrize(("longest", "teacher_longest"), [(16, 64), (64, 6), (16, 6), (64, 64)])
def test_a_row_cut_on_one_side_ends_at_the_same_text_on_both(longest, teacher_longest):
    batch = collator(longest=longest, teacher_longest=teacher_longest)(SAMPLES[:4])
    for row in range(4):
        own = BYTES.decode(batch["labels"][row][batch["labels"][row] != -100])
        other = BPE.decode(batch["teacher_labels"][row][batch["teacher_labels"][row] != -100])
        assert own == other
        assert (SAMPLES[row]["text"] + "<|end|>").startswith(own)
        if longest == teacher_longest:
            assert own == SAMPLES[row]["text"] + "<|end|>"


def test_vocabularies_that_forget_spaces_align_by_place():
    words = {w: i for i, w in enumerate(["[PAD]", "[EOS]", "[UNK]", "the", "cat", "##s", "sat", ",", "köln"])}
    backend = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", eos_token="[EOS]", unk_token="[UNK]"
    )
    sample = {"index": 0, "prompt": "the", "text": "The cats, mew sat", "domain": 0}
    batch = collator(teacher=tokenizer)([sample])
    chunks = texts_of(batch, 0, BYTES, "input_ids", "student_chunks")
    assert chunks == [b"The", b" cat", b"s", b",", b" mew", b" sat", b"<|end|>"]


def test_is_the_same_in_a_data_worker():
    here, there = collator()(SAMPLES[:3]), pickle.loads(pickle.dumps(collator()))(SAMPLES[:3])
    assert here.keys() == there.keys()
    assert all(torch.equal(here[key], there[key]) for key in here)


def test_whoever_measures_finds_what_the_students_collator_has():
    both = collator()
    both.student.written = 7
    assert both.written == 7
    assert both.tokenizer is BYTES
    with pytest.raises(AttributeError):
        both.no_such_thing  # noqa: B018


def test_a_collator_without_tokenizer_is_refused():
    with pytest.raises(InputError, match="teacher's collator has no tokenizer"):
        TwoTokenizerCollator(Rows(BYTES), Rows(None))
