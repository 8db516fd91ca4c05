"""TRG's tokens: drawn alike in both models, pooled to a grid; and the temperature along training."""

import pytest
import torch

from potstill.errors import InputError, ShapeError
from potstill.losses import feature_map_to_tokens, sample_tokens, trg_temperature


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(B, n, D):
    """Tokens that say where they stand."""
    places = torch.arange(B * n, dtype=torch.float32).view(B, n, 1)
    return places.expand(B, n, D).clone()


def test_both_models_give_the_tokens_of_the_same_places_without_repeats():
    student, teacher, ids = sample_tokens(numbered(5, 9, 2), numbered(5, 9, 4), 4, generator())
    assert student.shape == (20, 2)
    assert teacher.shape == (20, 4)
    assert ids.shape == (5, 4)
    places = (ids + 9 * torch.arange(5).unsqueeze(1)).flatten().float()
    torch.testing.assert_close(student[:, 0], places)
    torch.testing.assert_close(teacher[:, 3], places)
    assert all(len(set(row)) == 4 for row in ids.tolist())


def test_every_image_draws_by_itself_and_every_place_comes_equally_often():
    _, _, ids = sample_tokens(numbered(600, 6, 1), numbered(600, 6, 1), 2, generator())
    assert (ids != ids[0]).any()
    often = torch.bincount(ids.flatten(), minlength=6)
    assert (often - 200).abs().max() < 50  # standard deviation 11.5


def test_all_tokens_can_be_drawn():
    student, _, ids = sample_tokens(numbered(3, 4, 1), numbered(3, 4, 1), 4, generator())
    assert sorted(student.flatten().tolist()) == list(range(12))
    assert all(sorted(row) == [0, 1, 2, 3] for row in ids.tolist())


def test_its_own_generator_decides_and_the_global_one_is_left_alone():
    tokens = numbered(4, 9, 2)
    before = torch.get_rng_state()
    first, again, other = (sample_tokens(tokens, tokens, 3, generator(seed))[2] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_gradient_reaches_the_student_and_not_the_teacher():
    student, teacher = numbered(2, 5, 3).requires_grad_(), numbered(2, 5, 3).requires_grad_()
    s, t, ids = sample_tokens(student, teacher, 2, generator())
    s.sum().backward()
    assert not t.requires_grad
    assert (student.grad.sum(-1) == 3).sum() == 4
    assert (student.grad.gather(1, ids.unsqueeze(-1).expand(-1, -1, 3)) == 1).all()


@pytest.mark.parametrize("r", [0, 6, -1, 2.0])
def test_a_number_of_tokens_that_is_not_there_is_refused(r):
    with pytest.raises(InputError, match="1 to 5 tokens an image"):
        sample_tokens(numbered(2, 5, 3), numbered(2, 5, 3), r, generator())


def test_different_grids_are_refused():
    with pytest.raises(ShapeError, match="feature_map_to_tokens"):
        sample_tokens(numbered(2, 5, 3), numbered(2, 4, 3), 2, generator())
    with pytest.raises(ShapeError, match="tokens do not fit"):
        sample_tokens(numbered(2, 5, 3)[0], numbered(2, 5, 3)[0], 2, generator())


def test_a_map_is_averaged_patch_by_patch_in_reading_order():
    features = torch.randn(2, 3, 6, 4, generator=generator())
    tokens = feature_map_to_tokens(features, 2)
    assert tokens.shape == (2, 4, 3)
    for place, (rows, columns) in enumerate([((0, 3), (0, 2)), ((0, 3), (2, 4)), ((3, 6), (0, 2)), ((3, 6), (2, 4))]):
        patch = features[:, :, slice(*rows), slice(*columns)].mean((2, 3))
        torch.testing.assert_close(tokens[:, place], patch)
    torch.testing.assert_close(feature_map_to_tokens(features[..., :4, :], 4), features[..., :4, :].flatten(2).mT)


def test_a_grid_finer_than_the_map_is_refused():
    with pytest.raises(ShapeError, match="H, W >= 5"):
        feature_map_to_tokens(torch.zeros(1, 2, 6, 4), 5)
    with pytest.raises(ShapeError, match="feature map does not fit"):
        feature_map_to_tokens(torch.zeros(1, 6, 4), 2)
    with pytest.raises(InputError, match="grid does not fit"):
        feature_map_to_tokens(torch.zeros(1, 2, 6, 4), 0)


def test_the_temperature_falls_along_half_a_cosine():
    values = [trg_temperature(p / 10) for p in range(11)]
    assert values[0] == 0.5
    assert values[-1] == pytest.approx(0.07)
    assert values[5] == pytest.approx(0.285)
    assert values == sorted(values, reverse=True)
    assert trg_temperature(0.25, 1.0, 0.0001) == pytest.approx(0.0001 + 0.9999 * 0.8535534, abs=1e-6)


@pytest.mark.parametrize("progress", [-0.01, 1.01, float("nan")])
def test_progress_outside_training_is_refused(progress):
    with pytest.raises(InputError, match=r"a number in \[0, 1\]"):
        trg_temperature(progress)


def test_temperatures_that_are_not_above_zero_are_refused():
    with pytest.raises(InputError, match="tau_start"):
        trg_temperature(0.5, 0.0, 0.1)
    with pytest.raises(InputError, match="tau_end"):
        trg_temperature(0.5, 0.5, -0.1)
