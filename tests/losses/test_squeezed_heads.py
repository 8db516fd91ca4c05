"""Squeezing-Heads Distillation against a search for the best coefficient and a plain reading of the rounds."""

import pytest
import torch

from potstill.errors import ShapeError
from potstill.losses import one_to_one_heads, squeezing_heads


def maps(*shape, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*shape, generator=draws, dtype=torch.float64)).softmax(-1)


def values(*shape, seed=7):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def best_alpha(p, q, x_p, x_q):
    """Search the α in [0, 1] whose single map loses least of what two heads write."""
    grid = torch.linspace(0, 1, 10001, dtype=torch.float64)
    mixed = grid[:, None, None] * p + (1 - grid[:, None, None]) * q
    lost = (p @ x_p + q @ x_q - mixed @ (x_p + x_q)).square().sum((-1, -2))
    return grid[lost.argmin()]


@pytest.mark.parametrize("seed", range(8))
def test_two_heads_are_merged_by_the_coefficient_that_loses_least(seed):
    teacher, X = maps(1, 2, 4, 5, seed=seed), values(1, 2, 5, 3, seed=seed)
    student = maps(1, 1, 4, 5, seed=50)
    alpha = best_alpha(teacher[0, 0], teacher[0, 1], X[0, 0], X[0, 1])
    merged = (alpha * teacher[:, 0] + (1 - alpha) * teacher[:, 1])[:, None]
    found = squeezing_heads(student, teacher, teacher_values=X)
    torch.testing.assert_close(found, one_to_one_heads(student, merged), rtol=1e-3, atol=1e-4)


def test_a_head_that_writes_nothing_gives_way_to_the_other():
    teacher, X = maps(1, 2, 4, 5), values(1, 2, 5, 3)
    X[:, 1] = 0
    student = maps(1, 1, 4, 5, seed=3)
    torch.testing.assert_close(
        squeezing_heads(student, teacher, teacher_values=X), one_to_one_heads(student, teacher[:, :1])
    )


@pytest.mark.parametrize(
    ("Ht", "Hs", "groups"),
    [
        (8, 2, [range(0, 4), range(4, 8)]),
        (8, 8, [[h] for h in range(8)]),
        (8, 5, [[0, 1], [2, 3], [4, 5], [6], [7]]),
        (2, 1, [[0, 1]]),
    ],
)
def test_without_values_neighbours_are_averaged_until_the_numbers_agree(Ht, Hs, groups):
    teacher, student = maps(2, Ht, 3, 4), maps(2, Hs, 3, 4, seed=1)
    merged = torch.stack([teacher[:, list(group)].mean(1) for group in groups], 1)
    torch.testing.assert_close(squeezing_heads(student, teacher), one_to_one_heads(student, merged))


def test_nine_heads_become_three_by_way_of_five_and_the_odd_one_is_kept():
    teacher, student = maps(2, 9, 3, 4), maps(2, 3, 3, 4, seed=1)
    merged = torch.stack([teacher[:, :4].mean(1), teacher[:, 4:8].mean(1), teacher[:, 8]], 1)
    torch.testing.assert_close(squeezing_heads(student, teacher), one_to_one_heads(student, merged))


def test_merged_heads_write_what_both_wrote_in_the_next_round():
    teacher, X, student = maps(1, 4, 3, 5), values(1, 4, 5, 6), maps(1, 1, 3, 5, seed=1)
    halves = []
    for i in (0, 2):
        alpha = best_alpha(teacher[0, i], teacher[0, i + 1], X[0, i], X[0, i + 1])
        halves.append(alpha * teacher[0, i] + (1 - alpha) * teacher[0, i + 1])
    alpha = best_alpha(*halves, X[0, 0] + X[0, 1], X[0, 2] + X[0, 3])
    merged = (alpha * halves[0] + (1 - alpha) * halves[1])[None, None]
    torch.testing.assert_close(
        squeezing_heads(student, teacher, teacher_values=X), one_to_one_heads(student, merged), rtol=1e-3, atol=1e-4
    )


def test_masked_keys_may_hold_anything_in_maps_and_values():
    teacher, X, student = maps(2, 4, 3, 5), values(2, 4, 5, 6), maps(2, 2, 3, 5, seed=1)
    key_mask = torch.tensor([[True, True, True, False, True], [True, True, True, True, True]])
    plain = squeezing_heads(student, teacher, key_mask=key_mask, teacher_values=X)
    teacher[0, :, :, 3] = X[0, :, 3] = torch.nan
    torch.testing.assert_close(squeezing_heads(student, teacher, key_mask=key_mask, teacher_values=X), plain)
    assert torch.isfinite(plain)


def test_values_that_do_not_fit_and_too_few_heads_are_refused():
    teacher, student = maps(2, 4, 3, 5), maps(2, 2, 3, 5)
    with pytest.raises(ShapeError, match=r"teacher_values do not fit; expected \(B, Ht, K, D\) = \[2, 4, 5, D\]"):
        squeezing_heads(student, teacher, teacher_values=values(2, 2, 5, 6))
    with pytest.raises(ShapeError, match="fewer heads than the student"):
        squeezing_heads(teacher, student)


def test_no_gradient_reaches_the_teachers_values():
    teacher, X, student = maps(2, 4, 3, 5), values(2, 4, 5, 6).requires_grad_(), maps(2, 2, 3, 5).requires_grad_()
    squeezing_heads(student, teacher, teacher_values=X).backward()
    assert X.grad is None
    assert student.grad.abs().sum() > 0
