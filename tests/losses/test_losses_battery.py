"""What every loss promises, checked on every loss by the same tests; how exactly is in ``test_losses_numerics.py``."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import CASES, add_cases, value_and_gradient

import potstill.losses
from potstill.errors import InputError, ShapeError

any_draw = given(seed=st.integers(0, 2**31))


def cases(keep=lambda case: True):
    return pytest.mark.parametrize("case", [case for case in CASES if keep(case)], ids=lambda case: case.name)


every_loss = cases()
every_reducing_loss = cases(lambda case: case.reductions)


def test_a_loss_enters_by_its_name_alone(monkeypatch):
    def brand_new(student, teacher, *, mask=None):
        return (student - teacher.detach()).square().mean()

    monkeypatch.setattr(potstill.losses, "brand_new", brand_new, raising=False)
    before = list(CASES)
    add_cases([*potstill.losses.__all__, "brand_new"])
    added = [case.name for case in CASES[len(before) :]]
    del CASES[len(before) :]
    assert added == ["brand_new"]


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


@cases(lambda case: not case.has_labels)  # which would have to move too: the tests of those losses do that
@any_draw
@settings(max_examples=10)
def test_the_order_of_samples_does_not_matter(case, seed):
    student, teacher = case.inputs(6, seed)
    mask = case.mask_for(6)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    value, grad = value_and_gradient(case, student, teacher, mask)
    moved, moved_grad = value_and_gradient(case, student[order], teacher[order], mask[order])
    torch.testing.assert_close(moved, value)
    torch.testing.assert_close(moved_grad, grad[order])


@cases(lambda case: not case.needs_every_sample)
def test_masking_samples_equals_dropping_them(case):
    student, teacher = case.inputs(6)
    mask = torch.ones(6, *case.mask, dtype=torch.bool)
    mask[4:] = False
    value, grad = value_and_gradient(case, student, teacher, mask)
    kept, kept_grad = value_and_gradient(case, student[:4], teacher[:4])
    share = 4 / 6 if case.counts_empty_samples else 1
    torch.testing.assert_close(value, share * kept)
    torch.testing.assert_close(grad[:4], share * kept_grad)
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


@cases(lambda case: not case.refuses_an_empty_batch)
def test_an_empty_batch_gives_zero_with_a_graph(case):
    student, teacher = case.inputs(0)
    for mask in (None, torch.zeros(0, *case.mask, dtype=torch.bool)):
        value, grad = value_and_gradient(case, student, teacher, mask)
        assert value == 0
        assert value.shape == ()
        assert grad.shape == student.shape


@cases(lambda case: not case.refuses_an_empty_mask)  # test_module_hidden.py
def test_an_all_masked_batch_gives_zero_with_a_graph(case):
    student, teacher = case.inputs(6)
    mask = torch.zeros(6, *case.mask, dtype=torch.bool)
    value, grad = value_and_gradient(case, torch.full_like(student, torch.nan), teacher, mask)
    assert value == 0
    assert grad.abs().sum() == 0


@cases(lambda case: not case.rounds_products)
def test_autocast_does_not_round_the_statistics(case):
    student, teacher = case.inputs(6, dtype=torch.float32)
    plain = case.call(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = case.call(student, teacher)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, plain, rtol=1e-6, atol=1e-7)


@cases(lambda case: not case.detaches_a_part)
def test_the_gradient_is_that_of_the_value(case):
    student, teacher = case.inputs(5)
    mask = case.mask_for(5)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: case.call(s, teacher, mask=mask), (student,), eps=1e-6, atol=1e-6)


@cases(lambda case: case.differentiates_twice)
def test_the_gradient_can_be_differentiated_again(case):
    student, teacher = case.inputs(5)
    student.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda s: case.call(s, teacher), (student,), eps=1e-6, atol=1e-5)


@cases(
    lambda case: (
        case.student == case.teacher
        and case.name != "module_hidden_loss"  # there a layer is doubled
        and not case.costs_equal_models
    )
)
def test_equal_models_have_no_loss(case):
    _, teacher = case.inputs(6)
    value, grad = value_and_gradient(case, teacher, teacher)
    assert abs(value) < 1e-6
    assert torch.isfinite(grad).all()


@every_reducing_loss
@any_draw
@settings(max_examples=10)
def test_mean_is_the_sum_over_what_counts(case, seed):
    student, teacher = case.inputs(6, seed)
    mask = case.mask_for(6, seed)
    rows = case.call(student, teacher, mask=mask, reduction="none")
    total = case.call(student, teacher, mask=mask, reduction="sum")
    mean = case.call(student, teacher, mask=mask, reduction="mean")
    torch.testing.assert_close(rows.sum(), total)
    torch.testing.assert_close(mean, total / case.counted(mask))
    if case.is_per_sample:
        assert rows.shape == (6,)
        assert (rows[~mask.any(1)] == 0).all()
    else:
        assert rows.shape == mask.shape
        assert (rows[~mask] == 0).all()


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
