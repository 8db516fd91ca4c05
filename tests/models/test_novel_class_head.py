import pytest
import torch
import torch.nn.functional as F

from potstill.errors import ShapeError
from potstill.models.novel_class_head import NovelClassHead


def head(H=2):
    torch.manual_seed(0)
    return NovelClassHead(6, num_known=3, num_novel=4, num_heads=H, hidden=16, out=5)


def test_logits_are_known_classes_shared_and_new_ones_by_head():
    model, features = head().eval(), torch.randn(2, 7, 6)
    logits = model(features)
    assert logits.shape == (2, 2, 7, 7)
    torch.testing.assert_close(logits[:, 0, :, :3], model.known_logits(features))
    torch.testing.assert_close(logits[:, 0, :, :3], logits[:, 1, :, :3])
    torch.testing.assert_close(logits[..., 3:], model.novel_logits(features))
    assert not torch.allclose(logits[:, 0, :, 3:], logits[:, 1, :, 3:])
    torch.testing.assert_close(model(features[0]), logits[0])


def test_logits_are_cosines_once_prototypes_have_length_one():
    model, features = head().eval(), 50 * torch.randn(9, 6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    before = model.known.weight.clone()
    model.normalize_prototypes()
    for prototypes in (model.known, *model.novel):
        torch.testing.assert_close(prototypes.weight.norm(dim=1), torch.ones(len(prototypes.weight)))
    torch.testing.assert_close(F.cosine_similarity(model.known.weight, before), torch.ones(3))
    expected = F.cosine_similarity(features[:, None], model.known.weight[None], dim=-1)
    torch.testing.assert_close(model.known_logits(features), expected)
    assert (model(features).abs() <= 1 + 1e-6).all()


def test_prototypes_stay_the_same_parameters_and_leave_no_graph():
    model = head()
    known = model.known.weight
    model.normalize_prototypes()
    assert model.known.weight is known
    assert known.requires_grad
    assert known.grad_fn is None


def test_every_parameter_learns():
    model = head()
    model(torch.randn(2, 8, 6)).square().sum().backward()
    for name, parameter in model.named_parameters():
        if not name.endswith("0.bias"):  # the batch norm behind it takes any constant away
            assert parameter.grad.abs().max() > 1e-6, name


def test_wrong_sizes_are_refused():
    for sizes in ((0, 3, 4, 2), (6, 0, 4, 2), (6, 3, 0, 2), (6, 3, 4, 0)):
        with pytest.raises(ShapeError, match="1 or more"):
            NovelClassHead(*sizes)
    for shape in ((7, 5), (6,)):
        with pytest.raises(ShapeError, match=r"\(..., B, 6\)"):
            head()(torch.zeros(shape))
