import loss_references as ref
import pytest
import torch
import torch.nn.functional as F

from potstill.errors import ShapeError
from potstill.losses import hint_mse


def pair(*shape, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=draws, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 3, 5), (2, 3, 4, 5)])
def test_without_mask_it_is_the_mean_over_every_element(shape):
    student, teacher = pair(*shape)
    torch.testing.assert_close(hint_mse(student, teacher), F.mse_loss(student, teacher))


def test_with_a_token_mask_it_is_the_mean_over_features_then_tokens():
    student, teacher = pair(2, 4, 3)
    mask = torch.tensor([[True, True, False, False], [True, True, True, False]])
    exact, exact_grad = ref.gradient(lambda s: (s - teacher)[mask].square().mean(), student)
    value, grad = ref.gradient(lambda s: hint_mse(s, teacher, mask=mask), student)
    torch.testing.assert_close(value, exact)
    torch.testing.assert_close(grad, exact_grad)
    assert hint_mse(student, teacher, mask=mask, reduction="none").shape == (2, 4)


def test_a_feature_map_is_masked_by_pixel():
    student, teacher = pair(2, 5, 3, 4)
    mask = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    expected = (student - teacher).square().mean(1)[mask].mean()
    torch.testing.assert_close(hint_mse(student, teacher, mask=mask), expected)


@pytest.mark.parametrize(("shape_s", "shape_t"), [((2, 3, 4), (2, 3, 6)), ((2, 4, 3, 3), (2, 6, 3, 3))])
def test_unequal_widths_name_both_and_the_projector(shape_s, shape_t):
    with pytest.raises(ShapeError, match=r"student has 4 features, teacher 6.*projector"):
        hint_mse(torch.zeros(shape_s), torch.zeros(shape_t))


def test_other_places_are_refused_instead_of_broadcast():
    with pytest.raises(ShapeError, match="same places"):
        hint_mse(torch.zeros(2, 1, 4), torch.zeros(2, 3, 4))
    with pytest.raises(ShapeError, match="scalar"):
        hint_mse(torch.tensor(1.0), torch.tensor(1.0))
