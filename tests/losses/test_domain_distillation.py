import math

import pytest
import torch
import torch.nn.functional as F

import potstill.losses._common
from potstill.errors import InputError, ShapeError
from potstill.losses import ddk_loss, ddk_terms, kd_kl

LABELS = torch.tensor([[3, -100, 2, 0, 4], [1, 1, -100, -100, 0]])


def drawn(seed=0):
    return 2 * torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(student, teacher, labels, gamma, T):
    student, teacher, labels = student[:, :-1], teacher[:, :-1], labels[:, 1:]
    ce = F.cross_entropy(student.flatten(0, 1), labels.flatten(), ignore_index=-100)
    return ce + gamma * kd_kl(student, teacher, temperature=T, mask=labels != -100)


@pytest.mark.parametrize("T", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("gamma", [0.0, 0.2, 3.0])
def test_value_and_gradient_equal_the_plain_reading(gamma, T):
    one, two = drawn().requires_grad_(), drawn().requires_grad_()
    found, expected = ddk_loss(one, drawn(1), LABELS, gamma, T), plain(two, drawn(1), LABELS, gamma, T)
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(one.grad, two.grad)


def test_both_terms_can_be_had():
    terms = ddk_terms(drawn(), drawn(1), LABELS)
    torch.testing.assert_close(ddk_loss(drawn(), drawn(1), LABELS, gamma=0.7), terms.ce + 0.7 * terms.kl)
    torch.testing.assert_close(terms.ce, ddk_loss(drawn(), drawn(1), LABELS, gamma=0.0))


def test_equal_models_leave_cross_entropy_alone():
    torch.testing.assert_close(ddk_loss(drawn(), drawn(), LABELS, 5.0), ddk_loss(drawn(), drawn(1), LABELS, 0.0))


def test_no_gradient_reaches_the_teacher():
    student, teacher = drawn().requires_grad_(), drawn(1).requires_grad_()
    ddk_loss(student, teacher, LABELS).backward()
    assert teacher.grad is None


def test_chunks_change_neither_value_nor_gradient(monkeypatch):
    def run():
        student = drawn().requires_grad_()
        loss = ddk_loss(student, drawn(1), LABELS, temperature=2.0)
        loss.backward()
        return loss, student.grad

    whole = run()
    monkeypatch.setattr(potstill.losses._common, "CHUNK", 12)
    for got, expected in zip(run(), whole):
        torch.testing.assert_close(got, expected)


def test_positions_without_a_label_do_not_leak():
    counts = F.pad(LABELS[:, 1:] != -100, (0, 1))
    spoilt = [x.masked_fill(~counts[..., None], math.nan) for x in (drawn(), drawn(1))]
    torch.testing.assert_close(ddk_loss(*spoilt, LABELS), ddk_loss(drawn(), drawn(1), LABELS))


@pytest.mark.parametrize("labels", [torch.full((2, 5), -100), F.pad(torch.zeros(2, 1).long(), (0, 4), value=-100)])
def test_nothing_to_learn_gives_zero_with_a_graph(labels):
    student = drawn().requires_grad_()
    loss = ddk_loss(student, drawn(1), labels)
    loss.backward()
    assert loss == 0
    assert student.grad.abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    student, teacher = drawn().to(dtype), drawn(1).to(dtype)
    loss = ddk_loss(student, teacher, LABELS)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss.double(), ddk_loss(student.double(), teacher.double(), LABELS), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"teacher_logits": torch.zeros(2, 5, 7)}, ShapeError, "vocabularies differ"),
        ({"teacher_logits": torch.zeros(2, 4, 6)}, ShapeError, "leading shapes"),
        ({"labels": LABELS[:1]}, ShapeError, "labels do not fit"),
        ({"labels": LABELS + 3}, InputError, "no class"),
        ({"labels": LABELS.double()}, InputError, "class ids"),
        ({"gamma": -0.1}, InputError, "gamma"),
        ({"gamma": math.inf}, InputError, "gamma"),
        ({"temperature": 0.0}, InputError, "temperature"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        ddk_loss(**{"student_logits": drawn(), "teacher_logits": drawn(1), "labels": LABELS, **change})
