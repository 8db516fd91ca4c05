import pytest
import torch

from potstill.align.masks import token_mask
from potstill.errors import InputError, ShapeError

BATCH = {
    "attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]]),
    "labels": torch.tensor([[4, 0, -100], [-100, 3, -100]]),
}


def test_a_mask_key_gives_true_where_tokens_count():
    assert token_mask(BATCH, "attention_mask").tolist() == [[True, True, False], [True, False, False]]


def test_labels_count_where_they_are_not_ignored():
    assert token_mask(BATCH, "labels").tolist() == [[True, True, False], [False, True, False]]


def test_the_first_key_that_the_batch_has_is_used():
    assert torch.equal(token_mask(BATCH, "decoder_attention_mask|labels"), token_mask(BATCH, "labels"))
    more = {**BATCH, "decoder_attention_mask": torch.ones(2, 3)}
    assert token_mask(more, "decoder_attention_mask|labels").all()


def test_no_key_means_that_every_token_counts():
    assert token_mask(BATCH, None) is None


def test_a_token_that_the_model_appended_counts():
    assert token_mask(BATCH, "attention_mask", tokens=3).shape == (2, 3)
    assert token_mask(BATCH, "attention_mask", tokens=4).tolist() == [
        [True, True, False, True],
        [True, False, False, True],
    ]


def test_tokens_that_the_model_puts_behind_the_batch_all_count():
    whole = token_mask(BATCH, "decoder_attention_mask|attention_mask+2", tokens=5)
    assert whole.tolist() == [[True, True, False, True, True], [True, False, False, True, True]]
    assert token_mask(BATCH, "labels+1").shape == (2, 4)


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(ShapeError, match=r'mask "attention_mask" does not fit.*expected 7 tokens; got shape \(2, 3\)'):
        token_mask(BATCH, "attention_mask", tokens=7)


def test_a_missing_mask_names_what_was_looked_for_and_what_is_there():
    with pytest.raises(InputError, match="expected a or b_labels; got keys attention_mask, labels"):
        token_mask(BATCH, "a|b_labels")
