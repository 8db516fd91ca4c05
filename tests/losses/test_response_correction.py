import math

import pytest
import torch

from potstill.errors import InputError, ShapeError
from potstill.losses import kd_kl, scrg_select


def drawn(*shape, seed=0):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def full(*shape):
    return torch.ones(*shape, dtype=torch.bool)


def test_it_finds_the_token_of_largest_divergence_among_those_that_differ():
    for seed in range(10):
        student, teacher = drawn(3, 8, 6, seed=seed), drawn(3, 8, 6, seed=100 + seed)
        tokens = torch.randint(0, 6, (3, 8), generator=torch.Generator().manual_seed(seed))
        mask = torch.rand(3, 8, generator=torch.Generator().manual_seed(seed)) < 0.7
        position, replacement = scrg_select(student, teacher, tokens, mask)
        for b in range(3):
            rows = [
                (kd_kl(student[b, t], teacher[b, t]).item(), t)
                for t in range(8)
                if mask[b, t] and tokens[b, t] != teacher[b, t].argmax()
            ]
            assert position[b].item() == max(rows)[1]
            assert replacement[b] == teacher[b, position[b]].argmax()


def test_a_response_the_teacher_would_have_written_is_left_alone():
    teacher = drawn(2, 5, 6)
    position, replacement = scrg_select(drawn(2, 5, 6, seed=1), teacher, teacher.argmax(-1), full(2, 5))
    assert position.tolist() == replacement.tolist() == [-1, -1]


def test_what_is_masked_is_never_chosen_and_does_not_leak():
    student, teacher, tokens = drawn(1, 6, 5), drawn(1, 6, 5, seed=1), torch.zeros(1, 6, dtype=torch.long)
    mask = torch.tensor([[False, True, True, False, True, False]])
    junk = [x.masked_fill(~mask[..., None], math.nan) for x in (student, teacher)]
    found = scrg_select(*junk, tokens, mask)
    assert mask[0, found.position[0]]
    assert [x.tolist() for x in found] == [x.tolist() for x in scrg_select(student, teacher, tokens, mask)]
    assert scrg_select(student, teacher, tokens, ~full(1, 6)).position.tolist() == [-1]


def test_the_earliest_of_equally_bad_tokens_is_taken():
    teacher = torch.tensor([0.0, 3.0]).expand(1, 4, 2)
    tokens = torch.tensor([[1, 0, 0, 0]])
    assert scrg_select(torch.zeros(1, 4, 2), teacher, tokens, full(1, 4)).position.tolist() == [1]


def test_an_empty_response_has_nothing_to_correct():
    found = scrg_select(torch.zeros(2, 0, 4), torch.zeros(2, 0, 4), torch.zeros(2, 0).long(), full(2, 0))
    assert found.position.tolist() == found.replacement.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"teacher_logits": torch.zeros(1, 3, 5)}, ShapeError, "vocabularies differ"),
        ({"student_logits": torch.zeros(3, 4), "teacher_logits": torch.zeros(3, 4)}, ShapeError, "do(es)? not fit"),
        ({"tokens": torch.zeros(1, 2).long()}, ShapeError, "tokens do not fit"),
        ({"tokens": torch.zeros(1, 3)}, InputError, "whole numbers"),
        ({"mask": torch.ones(1, 3)}, InputError, "mask is not bool"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, message):
    zeros = torch.zeros(1, 3, 4)
    options = {"student_logits": zeros, "teacher_logits": zeros, "tokens": torch.zeros(1, 3).long(), "mask": full(1, 3)}
    with pytest.raises(error, match=message):
        scrg_select(**{**options, **change})
