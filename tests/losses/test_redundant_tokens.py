import pytest
import torch

from potstill.errors import InputError, ShapeError
from potstill.losses import redundant_token_mask


def tokens(B=2, n=6, D=4, seed=0):
    return torch.randn(B, n, D, generator=torch.Generator().manual_seed(seed))


def test_the_hand_case_drops_the_second_of_two_equal_tokens():
    score, kept = redundant_token_mask(torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]]), n_keep=2)
    assert score.tolist() == [[0.5, 0.5, 0.0]]
    assert kept.tolist() == [[0, 2]]


@pytest.mark.parametrize("protected", [0, 1, 2])
def test_scores_are_mean_cosines_and_the_lowest_stay_in_order(protected):
    x = tokens()
    score, kept = redundant_token_mask(x, 4, protected)
    for b in range(2):
        free = x[b, protected:]
        cosines = torch.stack([torch.cosine_similarity(row, free, dim=-1) for row in free])
        expected = (cosines.sum(1) - 1) / (len(free) - 1)
        torch.testing.assert_close(score[b], expected)
        best = sorted((expected.argsort(stable=True)[: 4 - protected] + protected).tolist())
        assert kept[b].tolist() == [*range(protected), *best]


def test_nothing_masked_is_the_identity():
    _, kept = redundant_token_mask(tokens(), 6)
    assert kept.tolist() == [[0, 1, 2, 3, 4, 5]] * 2


def test_later_choices_are_among_the_earlier():
    x = tokens(n=9)
    places = torch.arange(9).expand(2, 9)
    for n_keep in (7, 5, 3):
        _, kept = redundant_token_mask(x, n_keep)
        x, before = x.gather(1, kept.unsqueeze(-1).expand(-1, -1, 4)), places
        places = places.gather(1, kept)
        assert all(set(now.tolist()) <= set(then.tolist()) for now, then in zip(places, before))
        assert (places.diff(dim=1) > 0).all()


def test_the_choice_has_no_gradient_and_ignores_length():
    x = tokens().requires_grad_()
    score, kept = redundant_token_mask(x, 3)
    assert not score.requires_grad
    longer, also = redundant_token_mask(5 * x, 3)
    torch.testing.assert_close(longer, score)
    assert torch.equal(also, kept)


def test_a_zero_token_is_like_no_other():
    x = torch.ones(1, 3, 2)
    x[0, 1] = 0
    score, kept = redundant_token_mask(x, 1)
    torch.testing.assert_close(score, torch.tensor([[0.5, 0.0, 0.5]]))
    assert kept.tolist() == [[1]]


@pytest.mark.parametrize(("n_keep", "protected"), [(7, 0), (0, 0), (1, 1), (2, 3)])
def test_a_number_that_does_not_fit_is_refused(n_keep, protected):
    with pytest.raises(InputError, match=f"{protected + 1} to 6"):
        redundant_token_mask(tokens(), n_keep, protected)


def test_too_few_tokens_to_compare_are_refused():
    with pytest.raises(ShapeError, match="two or more that are not protected; got 1"):
        redundant_token_mask(tokens(n=3), 3, 2)
    with pytest.raises(ShapeError, match=r"\(B, n, D\)"):
        redundant_token_mask(torch.zeros(3, 2), 1)
    with pytest.raises(InputError, match="protected"):
        redundant_token_mask(tokens(), 2, -1)
