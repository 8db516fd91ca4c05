"""What every loss promises, checked on every loss by the same tests."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from potstill.errors import InputError, ShapeError
from potstill.losses import (
    attention_kl,
    attention_transfer,
    cka_loss,
    dist_loss,
    dkd,
    generalized_jsd,
    hint_mse,
    kd_kl,
    minilm_relation,
    module_hidden_loss,
    reverse_kl,
    tv_distance,
)


@dataclass
class Case:
    """One loss: shapes for B samples, how to call it, what its mask looks like."""

    name: str
    call: Callable
    student: tuple[int, ...]  # without the batch axis
    teacher: tuple[int, ...]
    mask: tuple[int, ...] = ()  # without the batch axis
    feature_axis: int | None = -1  # the axis the mask lacks; None = every axis behind the batch
    reductions: bool = True

    def inputs(self, B, seed=0, dtype=torch.float64):
        draws = torch.Generator().manual_seed(seed)
        pair = [torch.randn(B, *shape, generator=draws, dtype=torch.float64) for shape in (self.student, self.teacher)]
        return [(x.softmax(-1) if self.name == "attention_kl" else x).to(dtype) for x in pair]

    def mask_for(self, B, seed=0):
        return torch.rand(B, *self.mask, generator=torch.Generator().manual_seed(seed)) < 0.7

    def spread(self, mask, x):
        """Return the mask with the axes of ``x``."""
        if self.feature_axis is None:
            return mask.reshape(*mask.shape, *[1] * (x.ndim - mask.ndim)).expand_as(x)
        return mask.unsqueeze(self.feature_axis).expand_as(x)


TARGET = torch.tensor([1, 4, 0, 2, 2, 3, 1, 0])


def logits(name, loss, **options):
    return Case(name, lambda s, t, mask=None, **more: loss(s, t, mask=mask, **options, **more), (3, 5), (3, 5), (3,))


CASES = [
    logits("kd_kl", kd_kl, temperature=2.0),
    logits("reverse_kl", reverse_kl),
    logits("generalized_jsd", generalized_jsd, beta=0.3),
    logits("tv_distance", tv_distance),
    Case("dkd", lambda s, t, mask=None, **more: dkd(s, t, TARGET[: len(s)], mask=mask, **more), (5,), (5,)),
    Case(
        "dist_loss",
        lambda s, t, mask=None, **more: dist_loss(s, t, mask=mask, **more),
        (3, 5),
        (3, 5),
        (3,),
        reductions=False,
    ),
    Case(
        "dist_loss_dense",
        lambda s, t, mask=None, **more: dist_loss(s, t, mask=mask, **more),
        (5, 2, 3),
        (5, 2, 3),
        (2, 3),
        feature_axis=1,
        reductions=False,
    ),
    Case("cka_loss", lambda s, t, mask=None: cka_loss(s, t, mask=mask), (3, 4), (3, 6), (3,), reductions=False),
    Case(
        "cka_loss_rbf",
        lambda s, t, mask=None: cka_loss(s, t, mask=mask, kernel="rbf", debiased=True),
        (3, 4),
        (3, 6),
        (3,),
        reductions=False,
    ),
    Case("hint_mse", hint_mse, (3, 4), (3, 4), (3,)),
    Case("hint_mse_map", hint_mse, (4, 2, 3), (4, 2, 3), (2, 3), feature_axis=1),
    Case("attention_transfer", attention_transfer, (4, 3, 3), (6, 2, 5), (), feature_axis=None),
    Case(
        "attention_transfer_l2",
        lambda s, t, mask=None, **more: attention_transfer(s, t, mask=mask, mode="l2", p=3, **more),
        (4, 3, 3),
        (6, 3, 3),
        (),
        feature_axis=None,
    ),
    Case("attention_kl", attention_kl, (2, 3, 4), (2, 3, 4), (2, 3)),
    Case(
        "minilm_relation",
        lambda s, t, mask=None, **more: minilm_relation(s, t, 2, mask, **more),
        (4, 6),
        (4, 8),
        (4,),
    ),
    Case(
        "module_hidden_loss",
        lambda s, t, mask=None: module_hidden_loss([s, 2 * s], [t, t], None, mask),
        (3, 4),
        (3, 4),
        (3,),
        reductions=False,
    ),
]


def cases(keep=lambda case: True):
    return pytest.mark.parametrize("case", [case for case in CASES if keep(case)], ids=lambda case: case.name)


every_loss = cases()
every_reducing_loss = cases(lambda case: case.reductions)
every_loss_of_like_shapes = cases(lambda case: case.student == case.teacher)


def value_and_gradient(case, student, teacher, mask=None):
    student = student.detach().clone().requires_grad_()
    value = case.call(student, teacher, mask=mask)
    value.backward()
    return value.detach(), student.grad


@every_loss
def test_no_gradient_reaches_the_teacher(case):
    student, teacher = case.inputs(6)
    student.requires_grad_()
    teacher.requires_grad_()
    case.call(student, teacher).backward()
    assert teacher.grad is None
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().sum() > 0


@every_loss
def test_inputs_are_left_as_they_were(case):
    student, teacher = case.inputs(6, dtype=torch.float32)
    mask = case.mask_for(6)
    before = [x.clone() for x in (student, teacher, mask)]
    case.call(student, teacher, mask=mask)
    assert all(torch.equal(a, b) for a, b in zip(before, (student, teacher, mask)))


@cases(lambda case: case.name != "dkd")  # its targets would have to move too: test_decoupled.py does that
def test_the_order_of_samples_does_not_matter(case):
    student, teacher = case.inputs(6)
    mask = case.mask_for(6)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    value, grad = value_and_gradient(case, student, teacher, mask)
    moved, moved_grad = value_and_gradient(case, student[order], teacher[order], mask[order])
    torch.testing.assert_close(moved, value)
    torch.testing.assert_close(moved_grad, grad[order])


@every_loss
def test_masking_samples_equals_dropping_them(case):
    student, teacher = case.inputs(6)
    mask = torch.ones(6, *case.mask, dtype=torch.bool)
    mask[4:] = False
    value, grad = value_and_gradient(case, student, teacher, mask)
    kept, kept_grad = value_and_gradient(case, student[:4], teacher[:4])
    torch.testing.assert_close(value, kept)
    torch.testing.assert_close(grad[:4], kept_grad)
    assert grad[4:].abs().sum() == 0


@every_loss
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), -float("inf")])
def test_masked_positions_leak_neither_value_nor_gradient(case, junk):
    student, teacher = case.inputs(6)
    mask = case.mask_for(6)
    assert 0 < mask.sum() < mask.numel()
    value, grad = value_and_gradient(case, student, teacher, mask)
    spoilt = [x.masked_fill(~case.spread(mask, x), junk) for x in (student, teacher)]
    spoilt_value, spoilt_grad = value_and_gradient(case, *spoilt, mask)
    torch.testing.assert_close(spoilt_value, value)
    torch.testing.assert_close(spoilt_grad, grad)
    assert spoilt_grad[~case.spread(mask, student)].abs().sum() == 0


@every_loss
def test_a_full_mask_is_no_mask(case):
    student, teacher = case.inputs(6)
    full = torch.ones(6, *case.mask, dtype=torch.bool)
    for got, plain in zip(value_and_gradient(case, student, teacher, full), value_and_gradient(case, student, teacher)):
        torch.testing.assert_close(got, plain)


@every_loss
def test_an_empty_batch_gives_zero_with_a_graph(case):
    student, teacher = case.inputs(0)
    for mask in (None, torch.zeros(0, *case.mask, dtype=torch.bool)):
        value, grad = value_and_gradient(case, student, teacher, mask)
        assert value == 0
        assert value.shape == ()
        assert grad.shape == student.shape


@cases(lambda case: case.name != "module_hidden_loss")  # refuses such a mask: test_module_hidden.py
def test_an_all_masked_batch_gives_zero_with_a_graph(case):
    student, teacher = case.inputs(6)
    mask = torch.zeros(6, *case.mask, dtype=torch.bool)
    value, grad = value_and_gradient(case, torch.full_like(student, torch.nan), teacher, mask)
    assert value == 0
    assert grad.abs().sum() == 0


@every_loss
def test_half_precision_is_computed_in_float32(case):
    student, teacher = (x.bfloat16() for x in case.inputs(6))
    mask = case.mask_for(6)
    value, grad = value_and_gradient(case, student, teacher, mask)
    exact, exact_grad = value_and_gradient(case, student.double(), teacher.double(), mask)
    assert value.dtype == torch.float32
    assert grad.dtype == torch.bfloat16
    assert exact.dtype == torch.float64
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-6)
    # One rounding to bfloat16 at the end is allowed, not one per operation.
    error = (grad.double() - exact_grad).norm() / exact_grad.norm()
    assert error < 4e-3


@every_loss
def test_autocast_does_not_round_the_statistics(case):
    student, teacher = case.inputs(6, dtype=torch.float32)
    plain = case.call(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = case.call(student, teacher)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, plain, rtol=1e-6, atol=1e-7)


@every_loss
def test_the_gradient_is_that_of_the_value(case):
    student, teacher = case.inputs(5)
    mask = case.mask_for(5)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: case.call(s, teacher, mask=mask), (student,), eps=1e-6, atol=1e-6)


@every_loss_of_like_shapes
def test_float32_agrees_with_float64_close_to_the_teacher(case):
    _, teacher = case.inputs(6)
    noise = 1e-3 * torch.randn(teacher.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    student = (teacher * noise.exp()).float()
    if case.name == "attention_kl":
        student = student / student.sum(-1, keepdim=True)
    _, grad = value_and_gradient(case, student, teacher.float())
    _, exact = value_and_gradient(case, student.double(), teacher.float().double())
    assert (grad.double() - exact).norm() / exact.norm() < 5e-3


@cases(lambda case: case.student == case.teacher and case.name != "module_hidden_loss")  # there a layer is doubled
def test_equal_models_have_no_loss(case):
    _, teacher = case.inputs(6)
    value, grad = value_and_gradient(case, teacher, teacher)
    assert abs(value) < 1e-6
    assert torch.isfinite(grad).all()


@every_reducing_loss
def test_mean_is_the_sum_over_what_counts(case):
    student, teacher = case.inputs(6)
    mask = case.mask_for(6)
    rows = case.call(student, teacher, mask=mask, reduction="none")
    total = case.call(student, teacher, mask=mask, reduction="sum")
    mean = case.call(student, teacher, mask=mask, reduction="mean")
    torch.testing.assert_close(rows.sum(), total)
    if case.name == "minilm_relation":
        assert rows.shape == (6,)
        torch.testing.assert_close(mean, total / mask.any(1).sum())
    else:
        assert rows.shape == mask.shape
        assert (rows[~mask] == 0).all()
        torch.testing.assert_close(mean, total / mask.sum())


@every_reducing_loss
def test_an_unknown_reduction_is_refused_by_name(case):
    with pytest.raises(InputError, match=r'"mean", "sum", "none"; got batchmean'):
        case.call(*case.inputs(2), reduction="batchmean")


@every_loss
def test_a_mask_that_is_not_bool_is_refused(case):
    with pytest.raises(InputError, match="True = counts"):
        case.call(*case.inputs(6), mask=case.mask_for(6).long())


@every_loss
def test_a_mask_of_another_shape_is_refused(case):
    with pytest.raises(ShapeError, match="mask does not fit"):
        case.call(*case.inputs(6), mask=torch.ones(7, *case.mask, dtype=torch.bool))


@every_loss
def test_different_batches_are_refused(case):
    student, teacher = case.inputs(6)
    with pytest.raises(ShapeError):
        case.call(student, teacher[:5])


@every_loss
def test_integers_are_no_input(case):
    student, teacher = case.inputs(4)
    with pytest.raises(InputError, match="teacher is not floating point"):
        case.call(student, teacher.long())
