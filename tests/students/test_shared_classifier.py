import copy

import pytest
import torch
from torch import nn

from potstill.errors import InputError, RecipeError, ShapeError
from potstill.students import build_student, merge_classifier, name_classes, share_classifier


def mlp(width, classes=3, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, classes))


def cnn(width, classes=3):
    return nn.Sequential(
        nn.Conv2d(2, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)
    )


def images(seed=0):
    return torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def vit(hidden, layers=1):
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": hidden, "intermediate_size": hidden, "num_hidden_layers": layers, "num_attention_heads": 2}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=3, **sizes)).eval()


def test_with_the_teachers_features_and_an_identity_the_logits_are_the_teachers_bit_for_bit():
    teacher = mlp(8)
    student = share_classifier(copy.deepcopy(teacher), teacher)
    with torch.no_grad():
        student[2].projector.weight.copy_(torch.eye(8))
        student[2].projector.bias.zero_()
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(student(x), teacher(x))


def test_the_classifier_never_moves_but_all_the_rest_learns():
    teacher = mlp(8)
    student = share_classifier(mlp(5, seed=1), teacher)
    student.requires_grad_(True)
    optimiser = torch.optim.SGD(student.parameters(), lr=1.0)
    student(torch.ones(2, 4)).square().sum().backward()
    assert student[2].weight.grad is None
    assert not student[2].weight.requires_grad
    assert all(p.grad.abs().sum() > 0 for p in student.parameters())
    optimiser.step()
    assert torch.equal(student[2].weight, teacher[2].weight)
    assert torch.equal(student[2].bias, teacher[2].bias)


def test_the_teacher_is_left_alone():
    teacher = mlp(8)
    before = copy.deepcopy(teacher.state_dict())
    student = share_classifier(mlp(5), teacher)
    with torch.no_grad():
        student[2].weight.zero_()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_linear_projector_merges_into_one_layer():
    student = share_classifier(mlp(5, classes=7), mlp(8)).eval()
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    before = student(x)
    merged = merge_classifier(student)
    assert isinstance(merged[2], nn.Linear)
    assert merged[2].weight.shape == (3, 5)
    torch.testing.assert_close(merged(x), before)


def test_a_convolution_before_the_pooling_merges_too():
    torch.manual_seed(0)
    teacher, student = cnn(8), cnn(5)
    share_classifier(student, teacher, projector="conv")
    student.train()
    for seed in range(3):
        student(images(seed))  # the batch norm follows
    student.eval()
    before = student(images())
    assert before.shape == (6, 3)
    merge_classifier(student)
    assert list(student.state_dict()) == list(cnn(5).state_dict())
    torch.testing.assert_close(student(images()), before)


def test_a_classifier_without_bias_and_no_shared_classifier_merge_as_well():
    teacher = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3, bias=False))
    student = share_classifier(mlp(5), teacher)
    before = student(torch.ones(1, 4))
    torch.testing.assert_close(merge_classifier(student)(torch.ones(1, 4)), before)
    plain = mlp(5)
    assert merge_classifier(plain) is plain
    assert isinstance(plain[2], nn.Linear)


def test_a_model_of_transformers_comes_back_as_its_own_class(tmp_path):
    teacher, student = vit(16), vit(8)
    share_classifier(student, teacher)
    batch = {"pixel_values": torch.randn(2, 3, 8, 8)}
    before = student(**batch).logits
    merge_classifier(student).save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(**batch).logits, before)


def test_a_recipe_builds_it_around_another_builder():
    teacher = vit(16, layers=4)
    arguments = {"of": {"builder": "depth", "layers": 2}}
    student, record = build_student("shared_classifier", teacher, arguments)
    again, _ = build_student("shared_classifier", teacher, arguments)
    assert record.builder == "shared_classifier"
    assert list(record.layers.values()) == [[1, 3]]
    assert record.fresh == ["classifier.projector.bias", "classifier.projector.weight"]
    assert {"classifier.weight", "classifier.bias"} <= set(record.copied)
    assert set(record.copied) | set(record.fresh) == set(student.state_dict())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in student.state_dict().items())
    other, _ = build_student("shared_classifier", teacher, {**arguments, "seed": 1})
    assert not torch.equal(other.classifier.projector.weight, student.classifier.projector.weight)


def test_models_without_what_is_needed_are_refused():
    teacher = mlp(8)
    with pytest.raises(InputError, match="the student has no linear classifier"):
        share_classifier(nn.Sequential(nn.ReLU()), teacher)
    with pytest.raises(InputError, match="the teacher has no linear classifier"):
        share_classifier(mlp(5), nn.Sequential(nn.ReLU()))
    with pytest.raises(InputError, match='"linear" or "conv"'):
        share_classifier(mlp(5), teacher, projector="mlp")
    with pytest.raises(InputError, match="no global average pooling"):
        share_classifier(mlp(5), teacher, projector="conv")
    with pytest.raises(InputError, match='"1" of the student is not a linear classifier'):
        share_classifier(mlp(5), teacher, classifier="1")
    with pytest.raises(InputError, match="nothing there"):
        share_classifier(mlp(5), teacher, teacher_classifier="9")
    with pytest.raises(InputError, match="nothing but a classifier"):
        share_classifier(nn.Linear(4, 3), teacher)
    wide = cnn(5)
    wide[2] = nn.AdaptiveAvgPool2d(2)
    with pytest.raises(ShapeError, match="output size 1"):
        share_classifier(wide, cnn(8), projector="conv")


def test_a_recipe_without_a_student_inside_is_refused():
    with pytest.raises(RecipeError, match="names no builder"):
        build_student("shared_classifier", mlp(8), {"of": "depth"})
    with pytest.raises(RecipeError, match="shared once"):
        build_student("shared_classifier", mlp(8), {"of": {"builder": "shared_classifier", "of": {}}})
    with pytest.raises(RecipeError, match="no argument"):
        build_student("shared_classifier", vit(16), {"of": {"builder": "depth", "layers": 1, "depht": 2}})


def test_directions_alone_rank_classes_by_cosine():
    teacher = mlp(8)
    student = share_classifier(mlp(5, seed=1), teacher, directions=True).eval()
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    features = student[2].projector(student[:2](x))
    cosines = torch.cosine_similarity(features.unsqueeze(1), teacher[2].weight.unsqueeze(0), dim=-1)
    assert torch.equal(student(x).argmax(1), cosines.argmax(1))
    torch.testing.assert_close(student(x), cosines * features.norm(dim=1, keepdim=True))


def test_new_classes_are_named_by_their_texts():
    student = share_classifier(mlp(5), mlp(8), directions=True).eval()
    x, text = torch.randn(6, 4), torch.randn(7, 8)
    features = student[2].projector(student[:2](x))
    cosines = torch.cosine_similarity(features.unsqueeze(1), text.unsqueeze(0), dim=-1)
    assert torch.equal(name_classes(student, text)(x).argmax(1), cosines.argmax(1))
    merged = merge_classifier(student)
    assert torch.equal(merged(x).argmax(1), cosines.argmax(1))
    with pytest.raises(InputError, match="no shared classifier"):
        name_classes(merged, text)
    with pytest.raises(ShapeError, match=r"\(C, 8\)"):
        name_classes(share_classifier(mlp(5), mlp(8)), text[:, :4])
