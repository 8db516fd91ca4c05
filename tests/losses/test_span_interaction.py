import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import potstill.losses._common
from potstill.errors import InputError, ShapeError
from potstill.losses import span_correlation_loss, span_pairs


def drawn(*shape, seed=0):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(student, teacher, span_ids, mask):
    p, q = teacher.softmax(-1), student.softmax(-1)
    found = []
    for b in range(p.shape[0]):
        for t in range(p.shape[1] - 1):
            same = span_ids[b, t] == span_ids[b, t + 1] and span_ids[b, t] >= 0
            if same and mask[b, t] and mask[b, t + 1]:
                found.append((p[b, t] * p[b, t + 1] - q[b, t] * q[b, t + 1]).square().sum())
    return torch.stack(found).mean() if found else student.sum() * 0


def test_the_hand_value():
    teacher = torch.tensor([[[0.9, 0.1], [0.8, 0.2]]]).log()
    student = torch.tensor([[[0.4, 0.6], [0.5, 0.5]]]).log()
    assert span_correlation_loss(student, teacher, torch.tensor([[7, 7]])).item() == pytest.approx(0.3488, abs=1e-6)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_value_and_gradient_equal_the_plain_reading(seed):
    draws = torch.Generator().manual_seed(seed)
    spans = torch.randint(-1, 3, (3, 7), generator=draws)
    mask = torch.rand(3, 7, generator=draws) < 0.8
    one, two = (drawn(3, 7, 5, seed=seed).requires_grad_() for _ in range(2))
    teacher = drawn(3, 7, 5, seed=seed + 1)
    found, expected = span_correlation_loss(one, teacher, spans, mask), plain(two, teacher, spans, mask)
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(one.grad, two.grad)


def test_chunks_change_neither_value_nor_gradient(monkeypatch):
    student, teacher, spans = drawn(2, 9, 4), drawn(2, 9, 4, seed=1), torch.zeros(2, 9, dtype=torch.long)

    def run():
        s = student.clone().requires_grad_()
        loss = span_correlation_loss(s, teacher, spans, temperature=2.0)
        loss.backward()
        return loss, s.grad

    whole = run()
    monkeypatch.setattr(potstill.losses._common, "CHUNK", 12)
    for got, expected in zip(run(), whole):
        torch.testing.assert_close(got, expected)


def test_equal_models_cost_nothing_and_the_teacher_has_no_gradient():
    teacher, student = drawn(1, 4, 6).requires_grad_(), drawn(1, 4, 6).requires_grad_()
    loss = span_correlation_loss(student, teacher, torch.zeros(1, 4, dtype=torch.long))
    loss.backward()
    assert loss == 0
    assert teacher.grad is None
    assert student.grad.abs().sum() == 0


@pytest.mark.parametrize(
    ("spans", "mask"),
    [([[-1, -1, -1]], None), ([[0, 1, 2]], None), ([[0, 0, 0]], [[True, False, True]]), ([[0, -1, 0]], None)],
)
def test_no_pair_gives_zero_with_a_graph(spans, mask):
    student = drawn(1, 3, 4).requires_grad_()
    mask = None if mask is None else torch.tensor(mask)
    loss = span_correlation_loss(student, drawn(1, 3, 4, seed=1), torch.tensor(spans), mask)
    loss.backward()
    assert loss == 0
    assert student.grad.abs().sum() == 0


def test_what_is_masked_does_not_leak():
    spans, mask = torch.zeros(1, 5, dtype=torch.long), torch.tensor([[True, True, False, True, True]])
    student, teacher = drawn(1, 5, 4), drawn(1, 5, 4, seed=1)
    clean = span_correlation_loss(student, teacher, spans, mask)
    spoilt = [x.masked_fill(~mask[..., None], math.nan).requires_grad_() for x in (student, teacher)]
    loss = span_correlation_loss(*spoilt, spans, mask)
    loss.backward()
    torch.testing.assert_close(loss, clean)
    assert spoilt[0].grad.isfinite().all()


def test_pairs_are_counted_as_the_loss_does():
    spans = torch.tensor([[0, 0, 0, 1, -1, -1], [2, 2, 3, 3, 3, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1]]).bool()
    assert span_pairs(spans).sum() == 5
    assert span_pairs(spans, mask).tolist() == [[True, True, False, False, False], [True, False, False, False, False]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    student, teacher, spans = drawn(2, 4, 9).to(dtype), drawn(2, 4, 9, seed=1).to(dtype), torch.zeros(2, 4).long()
    loss = span_correlation_loss(student, teacher, spans)
    assert loss.dtype == torch.float32
    exact = span_correlation_loss(student.double(), teacher.double(), spans)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"teacher_logits": torch.zeros(1, 3, 5)}, ShapeError, "vocabularies differ"),
        ({"student_logits": torch.zeros(3, 4), "teacher_logits": torch.zeros(3, 4)}, ShapeError, r"\(B, T, V\)"),
        ({"span_ids": torch.zeros(1, 2).long()}, ShapeError, "span ids do not fit"),
        ({"span_ids": torch.zeros(1, 3)}, InputError, "whole numbers"),
        ({"temperature": -1.0}, InputError, "temperature"),
        ({"mask": torch.ones(1, 3)}, InputError, "mask is not bool"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, message):
    zeros = torch.zeros(1, 3, 4)
    options = {"student_logits": zeros, "teacher_logits": zeros, "span_ids": torch.zeros(1, 3).long(), **change}
    with pytest.raises(error, match=message):
        span_correlation_loss(**options)
