import pytest
import torch

from potstill.errors import InputError
from potstill.models.load import load_model
from potstill.models.novel_classes import NovelClassConfig, NovelClassModel
from potstill.students import build_student

VIT = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VIT |= {"patch_size": 7}
RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
SIZES = {"num_labels": 3, "num_novel": 2, "num_heads": 2, "projector_width": 16, "cluster_width": 8}


def model(encoder=VIT, **fields):
    torch.manual_seed(0)
    return NovelClassModel(NovelClassConfig(encoder=encoder, **{**SIZES, **fields})).eval()


@pytest.mark.parametrize("encoder", [VIT, RESNET], ids=["vit", "resnet"])
def test_any_vision_encoder_gives_cosines_and_the_logits_of_the_best_head(encoder):
    student, pictures = model(encoder), torch.randn(4, 1, 28, 28)
    for best in (0, 1):
        student.best_head.fill_(best)
        output = student(pictures)
        assert output.head_cosines.shape == (4, 2, 5)
        assert (output.head_cosines.abs() <= 1 + 1e-6).all()
        torch.testing.assert_close(output.known_cosines, output.head_cosines[:, 1, :3])
        torch.testing.assert_close(output.logits, output.head_cosines[:, best] / 0.1)


@pytest.mark.parametrize("encoder", [VIT, RESNET], ids=["vit", "resnet"])
def test_saving_and_loading_keeps_encoder_heads_and_best_head(encoder, tmp_path):
    student, pictures = model(encoder), torch.randn(4, 1, 28, 28)
    student.best_head.fill_(1)
    student.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is NovelClassModel
    assert loaded.best_head == 1
    torch.testing.assert_close(loaded(pictures).logits, student(pictures).logits, rtol=0, atol=0)


def test_every_parameter_can_learn():
    student = model().train()
    student(torch.randn(6, 1, 28, 28)).head_cosines.square().sum().backward()
    assert [name for name, p in student.named_parameters() if p.grad is None] == []


def test_prototypes_start_with_length_one():
    torch.testing.assert_close(model().head.known.weight.norm(dim=1), torch.ones(3))


def test_a_recipe_builds_it_for_the_pictures_and_classes_of_the_data():
    fields = {"encoder": VIT, "num_novel": 4, "num_heads": 3, "projector_width": 16, "cluster_width": 8}
    data = {"image_size": 14, "num_channels": 3, "num_labels": 2, "id2label": {0: "a", 1: "b"}}
    data |= {"label2id": {"a": 0, "b": 1}}
    options = {"family": "novel_classes", "fields": fields, "data_fields": data, "seed": 1}
    student, record = build_student("new", None, options)
    assert student.eval()(torch.zeros(2, 3, 14, 14)).head_cosines.shape == (2, 3, 6)
    assert record.student_class == "NovelClassModel"
    again = build_student("new", None, options)[0]
    assert all(torch.equal(a, b) for a, b in zip(student.state_dict().values(), again.state_dict().values()))


def test_wrong_fields_are_refused():
    with pytest.raises(InputError, match="num_novel"):
        NovelClassConfig(encoder=VIT, num_novel=0)
    with pytest.raises(InputError, match="temperature"):
        NovelClassConfig(encoder=VIT, temperature=0)
    with pytest.raises(InputError, match=r'unknown field "num_novels".*Did you mean "num_novel"'):
        NovelClassConfig(encoder=VIT, num_novels=3)
    with pytest.raises(InputError, match="model_type"):
        NovelClassConfig(encoder={"model_type": "no such encoder"})
