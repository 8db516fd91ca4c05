import pytest
import torch

from potstill.align.projectors import PROJECTORS, build_projector
from potstill.errors import RecipeError, ShapeError


def test_linear_is_one_matrix_of_teacher_by_student_width_without_bias():
    projector = build_projector("linear", (2, 5, 8), (2, 5, 16))
    assert [tuple(p.shape) for p in projector.parameters()] == [(16, 8)]
    features = torch.randn(2, 5, 8)
    torch.testing.assert_close(projector(features), features @ projector.weight.T)


def test_conv1x1_maps_every_pixel_alike():
    projector = build_projector("conv1x1", (2, 4, 3, 3), (2, 6, 3, 3))
    features = torch.randn(2, 4, 3, 3)
    expected = torch.einsum("bchw,dc->bdhw", features, projector.map.weight[:, :, 0, 0])
    torch.testing.assert_close(projector(features), expected)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_token_projectors_take_any_leading_shape(kind):
    projector = build_projector(kind, (2, 5, 8), (2, 5, 12))
    assert projector(torch.randn(7, 8)).shape == (7, 12)
    assert projector(torch.randn(3, 2, 5, 8)).shape == (3, 2, 5, 12)


def test_auto_makes_nothing_for_equal_widths():
    assert build_projector("auto", (2, 5, 8), (2, 7, 8)) is None
    assert build_projector("auto", (2, 8, 4, 4), (2, 8, 2, 2)) is None


def test_auto_chooses_by_the_kind_of_features():
    assert type(build_projector("auto", (2, 5, 8), (2, 5, 9))) is PROJECTORS.get("linear")
    assert type(build_projector("auto", (2, 8), (2, 9))) is PROJECTORS.get("linear")
    assert type(build_projector("auto", (2, 8, 4, 4), (2, 9, 4, 4))) is PROJECTORS.get("conv1x1")


def test_a_projector_asked_for_by_name_is_made_for_equal_widths_too():
    assert build_projector("linear", (2, 5, 8), (2, 5, 8)) is not None


def test_start_depends_on_the_seed_only_and_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    first = build_projector("linear", (2, 8), (2, 9), seed=3)
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(3))
    assert torch.equal(first.weight, build_projector("linear", (2, 8), (2, 9), seed=3).weight)
    assert not torch.equal(first.weight, build_projector("linear", (2, 8), (2, 9), seed=4).weight)


@pytest.mark.parametrize("kind", ["linear", "mlp", "conv1x1"])
def test_gradients_reach_student_features_and_the_projector(kind):
    shape_s, shape_t = ((2, 4, 3, 3), (2, 5, 3, 3)) if kind == "conv1x1" else ((2, 3, 4), (2, 3, 5))
    projector = build_projector(kind, shape_s, shape_t)
    features = torch.randn(shape_s, requires_grad=True)
    projector(features).square().sum().backward()
    assert features.grad.abs().sum() > 0
    assert all(p.grad.abs().sum() > 0 for p in projector.parameters())


@pytest.mark.parametrize(
    ("kind", "shape_s", "shape_t", "error", "message"),
    [
        ("liner", (2, 8), (2, 9), RecipeError, 'unknown projector "liner".*Did you mean "linear"'),
        ("auto", (2, 5, 8), (2, 9), ShapeError, r"same number of axes.*\(2, 5, 8\) and \(2, 9\)"),
        ("auto", (8,), (9,), ShapeError, "at least 2"),
        ("none", (2, 8), (2, 9), ShapeError, "8 wide and the teacher 9, and no projector"),
        ("conv1x1", (2, 5, 8), (2, 5, 9), ShapeError, 'Use "linear" for token features'),
    ],
)
def test_shapes_that_cannot_be_projected_are_refused(kind, shape_s, shape_t, error, message):
    with pytest.raises(error, match=message):
        build_projector(kind, shape_s, shape_t, where="objectives[0].projector")


def test_features_of_another_width_than_planned_are_refused():
    with pytest.raises(ShapeError, match=r"built for 8 student channels; got features of shape \(2, 7\)"):
        build_projector("linear", (2, 8), (2, 9))(torch.randn(2, 7))
    with pytest.raises(ShapeError, match="maps \\(B, C, H, W\\)"):
        build_projector("conv1x1", (2, 8, 1, 1), (2, 9, 1, 1))(torch.randn(2, 8, 3))
