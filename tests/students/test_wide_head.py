import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

from potstill.errors import InputError, RecipeError
from potstill.export import export_student
from potstill.losses import lelp_class_probs
from potstill.models.load import load_model
from potstill.students import build_student, widen_head

TINY = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
PICTURES = dict(image_size=8, patch_size=4, num_channels=1)


def vit(classes=3):
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**TINY, **PICTURES, num_labels=classes)).eval()


def wide(teacher, **more):
    return build_student("wide_head", teacher, {"of": {"builder": "config", "overrides": {}}, "subclasses": 4, **more})


def test_units_are_copies_of_their_class_with_noise_of_the_size_asked_for():
    linear = nn.Linear(50, 3)
    head = widen_head(linear, 4, noise=0.01, seed=2)
    assert (head.in_features, head.out_features) == (50, 12)
    assert torch.equal(head.bias, linear.bias.repeat_interleave(4))
    noise = head.weight - linear.weight.repeat_interleave(4, 0)
    assert 0.008 < noise.std() < 0.012
    assert torch.equal(widen_head(linear, 4, noise=0.01, seed=2).weight, head.weight)
    assert not torch.equal(widen_head(linear, 4, noise=0.01, seed=3).weight, head.weight)


def test_probabilities_of_the_classes_start_as_they_were():
    linear, x = nn.Linear(6, 3, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    for noise, off in ((0.0, 1e-12), (1e-3, 1e-2)):
        probs = lelp_class_probs(widen_head(linear, 4, noise=noise)(x), 3)
        torch.testing.assert_close(probs, linear(x).softmax(-1), rtol=0, atol=off)


def test_a_layer_without_bias_and_in_half_precision_stays_so():
    head = widen_head(nn.Linear(6, 3, bias=False, dtype=torch.bfloat16), 2)
    assert head.bias is None
    assert head.weight.dtype == torch.bfloat16
    assert head.weight.requires_grad


def test_what_cannot_be_widened_is_refused():
    with pytest.raises(InputError, match="no linear layer"):
        widen_head(nn.Conv2d(1, 1, 1), 2)
    with pytest.raises(InputError, match="at least 1; got 0"):
        widen_head(nn.Linear(2, 2), 0)
    with pytest.raises(InputError, match="noise"):
        widen_head(nn.Linear(2, 2), 2, noise=-1)


def test_the_student_answers_in_classes_and_shows_its_units():
    teacher = vit()
    student, record = wide(teacher, noise=0.0)
    pixels = torch.randn(2, 1, 8, 8)
    output = student.eval()(pixel_values=pixels)
    assert output.wide_logits.shape == (2, 12)
    torch.testing.assert_close(output.logits.softmax(-1), teacher(pixel_values=pixels).logits.softmax(-1))
    torch.testing.assert_close(output.logits.softmax(-1), lelp_class_probs(output.wide_logits, 3))
    assert record.builder == "wide_head"
    assert record.fresh == ["inner.classifier.weight", "inner.classifier.bias"]
    assert "inner.vit.layernorm.weight" in record.copied
    assert record.parameters == record.teacher_parameters + 9 * 17


def test_a_text_classifier_is_widened_as_well():
    torch.manual_seed(0)
    teacher = BertForSequenceClassification(BertConfig(**TINY, vocab_size=20, num_labels=2)).eval()
    student, _ = wide(teacher, noise=0.0)
    words = dict(input_ids=torch.randint(0, 20, (2, 5)), attention_mask=torch.ones(2, 5, dtype=torch.long))
    torch.testing.assert_close(student.eval()(**words).logits.softmax(-1), teacher(**words).logits.softmax(-1))


def test_it_is_exported_and_loaded_as_it_is(tmp_path):
    student, _ = wide(vit())
    pixels = torch.randn(2, 1, 8, 8)
    folder = export_student(student, tmp_path / "student", batch={"pixel_values": pixels})
    loaded = load_model(folder)
    assert torch.equal(loaded(pixel_values=pixels).logits, student.eval()(pixel_values=pixels).logits)


def test_the_other_builder_gets_the_fields_of_the_data_and_the_seed():
    fields = {**TINY, "patch_size": 4}
    of = {"builder": "new", "family": "vit", "architecture": "ViTForImageClassification", "fields": fields}
    of_data = {"num_labels": 2, "image_size": 8, "num_channels": 1}
    options = {"of": of, "subclasses": 3, "data_fields": of_data}
    students = [build_student("wide_head", None, {**options, "seed": seed})[0] for seed in (1, 1, 2)]
    assert students[0].inner.classifier.out_features == 6
    first, again, other = (s.inner.vit.embeddings.patch_embeddings.projection.weight for s in students)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_builders_and_heads_that_are_not_there_are_refused():
    teacher = vit()
    with pytest.raises(RecipeError, match="names no builder"):
        wide(teacher, of={"family": "vit"})
    with pytest.raises(RecipeError, match=r"of\.builder"):
        wide(teacher, of={"builder": "nobody"})
    with pytest.raises(InputError, match="head: is no linear layer"):
        wide(teacher, head="vit.layernorm")
    with pytest.raises(InputError, match="another number of units"):
        wide(teacher, head=next(n for n, m in teacher.named_modules() if isinstance(m, nn.Linear)))
    ambiguous = vit(classes=16)  # as many units as the model is wide
    with pytest.raises(InputError, match="which layer is the output layer"):
        wide(ambiguous)
    assert wide(ambiguous, head="classifier")[0].inner.classifier.out_features == 64
