from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import potstill.align
from potstill.errors import InputError
from potstill.losses import SpecialToken, align_chunks

BOS, EOS, PAD = SpecialToken("bos"), SpecialToken("eos"), SpecialToken("pad")


def test_chunks_end_where_both_tokenizers_end():
    teacher, student = [" He", "llo", "?", " wor", "ld"], [" Hello", "?", " w", "orld"]
    assert align_chunks(teacher, student) == [(0, 2, 0, 1), (2, 3, 1, 2), (3, 5, 2, 4)]


def test_equal_lists_give_one_chunk_per_token():
    tokens = [b"a", b"bc", b" d"]
    assert align_chunks(tokens, tokens) == [(i, i + 1, i, i + 1) for i in range(3)]


def test_text_counts_by_its_bytes():
    assert align_chunks(["ü", "x"], [b"\xc3", b"\xbc", b"x"]) == [(0, 1, 0, 2), (1, 2, 2, 3)]


def test_leading_space_of_one_side_is_passed_over():
    assert align_chunks([" He", "llo"], ["He", "llo"]) == [(0, 1, 0, 1), (1, 2, 1, 2)]
    assert align_chunks(["He", "llo"], [" ", "He", "llo"]) == [(0, 1, 0, 2), (1, 2, 2, 3)]


def test_equal_leading_space_stays():
    assert align_chunks([" ", "a"], [" a"]) == [(0, 2, 0, 1)]


def test_special_tokens_align_by_role():
    assert align_chunks([BOS, "ab", EOS], [BOS, "a", "b", EOS]) == [(0, 1, 0, 1), (1, 2, 1, 3), (2, 3, 3, 4)]


def test_special_token_of_one_side_is_in_no_chunk():
    assert align_chunks([BOS, "ab", EOS], ["ab", EOS]) == [(1, 2, 0, 1), (2, 3, 1, 2)]


def test_special_tokens_of_other_roles_are_in_no_chunk():
    assert align_chunks([BOS, "ab"], [EOS, "ab"]) == [(1, 2, 1, 2)]


def test_padding_is_skipped():
    assert align_chunks([PAD, PAD, "ab"], ["ab", PAD]) == [(2, 3, 0, 1)]
    assert align_chunks([PAD, "a"], [PAD, "a"]) == [(1, 2, 1, 2)]


def test_spans_whose_bytes_differ_are_left_out():
    assert align_chunks(["Ab", "c"], ["ab", "c"]) == [(1, 2, 1, 2)]


def test_cut_off_end_is_left_out():
    assert align_chunks(["ab", "cd"], ["ab", "c"]) == [(0, 1, 0, 1)]
    assert align_chunks(["ab", EOS], ["abc", EOS]) == [(1, 2, 1, 2)]


def test_nothing_aligns_with_nothing():
    assert align_chunks([], ["a"]) == []


def test_a_number_is_no_token():
    with pytest.raises(InputError, match="not a token of the student"):
        align_chunks(["a"], [7])


@given(text=st.text(max_size=40), cuts=st.lists(st.integers(0, 160), max_size=20), others=st.lists(st.integers(0, 160)))
def test_every_chunk_is_the_same_text_and_all_text_is_in_one(text, cuts, others):
    data = text.encode("utf-8", "surrogatepass")

    def cut(at):
        at = sorted({0, len(data), *(c for c in at if c < len(data))})
        return [data[a:b] for a, b in pairwise(at)]

    teacher, student = cut(cuts), cut(others)
    chunks = align_chunks(teacher, student)
    assert all(b"".join(teacher[ts:te]) == b"".join(student[ss:se]) for ts, te, ss, se in chunks)
    assert b"".join(b"".join(teacher[ts:te]) for ts, te, _, _ in chunks) == data
    ends = {sum(map(len, teacher[:n])) for n in range(1, len(teacher) + 1)}
    ends &= {sum(map(len, student[:n])) for n in range(1, len(student) + 1)}
    assert len(chunks) == len(ends)


def test_both_packages_have_the_names():
    assert potstill.align.align_chunks is align_chunks
    assert potstill.align.boundary_mask is potstill.losses.boundary_mask
