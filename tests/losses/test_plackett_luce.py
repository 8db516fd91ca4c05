"""PLD: the numbered checks of its description, ``topk``, tokens, and what is refused."""

import math

import loss_references as ref
import pytest
import torch
import torch.nn.functional as F

from potstill.errors import InputError, ShapeError
from potstill.losses import pld_loss, pld_token_loss

HAND = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[2.0, 1.0, 0.0]])


def draw(N, C, seed=0):
    draws = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(N, C, generator=draws, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.randint(C, (N,), generator=draws)


def plain(student, teacher, labels, tau=1.0, weights="teacher", topk=None):
    """The definition, class by class."""
    rows = []
    for s, t, y in zip(student, teacher, labels.tolist()):
        C = len(s)
        order = [y, *sorted((c for c in range(C) if c != y), key=lambda c: (-t[c].item(), c))]
        q = ref.softmax(t, tau)
        alpha = {"teacher": [q[c] for c in order], "uniform": [1 / C] * C, "ce": [1.0] + [0.0] * (C - 1)}[weights]
        terms = [torch.logsumexp(s[order[k:]], 0) - s[order[k]] for k in range(C)]
        rows.append(sum(alpha[k] * terms[k] for k in range(min(C, topk or C))))
    return torch.stack(rows)


def test_hand_values_of_three_classes():
    student, teacher = HAND
    terms = [1.40761, 2.12693]
    assert pld_loss(student, teacher, torch.tensor([0])).item() == pytest.approx(1.4569170, abs=1e-6)
    assert 0.66524 * terms[0] + 0.24473 * terms[1] == pytest.approx(1.4569170, abs=2e-5)
    assert pld_loss(student, teacher, torch.tensor([1])).item() == pytest.approx(1.4628452, abs=1e-6)


@pytest.mark.parametrize("weights", ["teacher", "uniform", "ce"])
@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("shape", [(1, 2), (7, 5), (4, 11)])
def test_value_and_gradient_equal_the_plain_reading(weights, tau, shape):
    student, teacher, labels = draw(*shape)
    exact, exact_grad = ref.gradient(lambda s: plain(s, teacher, labels, tau, weights).mean(), student)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        value, grad = ref.gradient(
            lambda s, dtype=dtype: pld_loss(s, teacher.to(dtype), labels, tau=tau, weights=weights), student.to(dtype)
        )
        torch.testing.assert_close(value.double(), exact, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(grad.double(), exact_grad, rtol=tolerance, atol=tolerance)


def test_the_gradient_is_the_one_in_closed_form():
    student, teacher, labels = draw(1, 5)
    _, grad = ref.gradient(lambda s: pld_loss(s, teacher, labels), student)
    y = labels.item()
    order = [y] + [c for c in teacher[0].argsort(descending=True).tolist() if c != y]
    alpha, s = ref.softmax(teacher[0])[order], student[0][order]
    for i, c in enumerate(order):
        shares = sum(alpha[k] * s[i].exp() / s[k:].exp().sum() for k in range(i + 1))
        assert grad[0, c].item() == pytest.approx((shares - alpha[i]).item(), abs=1e-12)


def test_a_constant_changes_nothing_but_the_size_of_student_logits_does():
    student, teacher, labels = draw(6, 5)
    value = pld_loss(student, teacher, labels)
    by_row = torch.arange(6.0, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(pld_loss(student + by_row, teacher, labels), value)
    torch.testing.assert_close(pld_loss(student, teacher - by_row, labels), value)
    assert (pld_loss(2 * student, teacher, labels) - value).abs() > 0.01


def test_special_weights_are_cross_entropy_and_listmle():
    student, teacher, labels = draw(8, 6)
    torch.testing.assert_close(pld_loss(student, teacher, labels, weights="ce"), F.cross_entropy(student, labels))
    likelihood = []
    for s, t, y in zip(student, teacher, labels.tolist()):
        left, chance = s.exp(), 1.0
        order = [y] + [c for c in t.argsort(descending=True).tolist() if c != y]
        for c in order:
            chance, left = chance * left[c] / left.sum(), left.index_fill(0, torch.tensor([c]), 0)
        likelihood.append(-chance.log())
    torch.testing.assert_close(
        pld_loss(student, teacher, labels, weights="uniform"), torch.stack(likelihood).mean() / 6
    )


def test_a_small_tau_leaves_cross_entropy_where_the_teacher_is_right():
    student, teacher, _ = draw(8, 6)
    labels = teacher.argmax(1)
    wanted = F.cross_entropy(student, labels)
    torch.testing.assert_close(pld_loss(student, teacher, labels, tau=1e-3), wanted)
    assert (pld_loss(student, teacher, labels, tau=1.0) - wanted).abs() > 0.05


def test_it_is_convex_in_the_student():
    student, teacher, labels = draw(6, 5)
    other = draw(6, 5, seed=1)[0]
    rows = {"reduction": "none"}
    for share in (0.1, 0.5, 0.8):
        mixed = pld_loss(share * student + (1 - share) * other, teacher, labels, **rows)
        ends = [pld_loss(x, teacher, labels, **rows) for x in (student, other)]
        assert (mixed <= share * ends[0] + (1 - share) * ends[1]).all()


def test_gradient_rows_sum_to_zero():
    student, teacher, labels = draw(6, 5)
    _, grad = ref.gradient(lambda s: pld_loss(s, teacher, labels), student)
    torch.testing.assert_close(grad.sum(1), torch.zeros(6, dtype=torch.float64))


def test_it_is_positive_where_both_agree_and_vanishes_as_the_gaps_between_ranks_grow():
    _, teacher, labels = draw(6, 5)
    labels = teacher.argmax(1)
    ranks = teacher.argsort(1).argsort(1).double()
    values = [pld_loss(size * ranks, teacher, labels).item() for size in (0, 1, 5, 50)]
    assert pld_loss(teacher, teacher, labels) > 0.1
    assert values == sorted(values, reverse=True)
    assert 0 <= values[-1] < 1e-12


def test_of_two_classes_it_is_weighted_cross_entropy():
    student, teacher, labels = draw(7, 2)
    alpha = ref.softmax(teacher).gather(1, labels.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(
        pld_loss(student, teacher, labels), (alpha * F.cross_entropy(student, labels, reduction="none")).mean()
    )


def test_a_teacher_of_other_logits_but_equal_order_and_weights_gives_the_same():
    student, teacher, labels = draw(6, 5)
    torch.testing.assert_close(
        pld_loss(student, 3 * teacher + 1, labels, tau=3.0), pld_loss(student, teacher, labels, tau=1.0)
    )


def test_no_gradient_reaches_the_teacher():
    student, teacher, labels = draw(6, 5)
    student.requires_grad_()
    teacher.requires_grad_()
    pld_loss(student, teacher, labels).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("weights", ["teacher", "uniform"])
def test_logits_in_the_thousands_give_finite_numbers(weights):
    student, teacher, labels = (x.float() if x.is_floating_point() else x for x in draw(6, 5))
    for s, t in ((1e3 * student, 1e3 * teacher), (1e3 * student, teacher), (-1e3 * teacher, 1e3 * teacher)):
        value, grad = ref.gradient(lambda x, t=t: pld_loss(x, t, labels, weights=weights), s)
        assert torch.isfinite(value)
        assert torch.isfinite(grad).all()
        exact = plain(s.double(), t.double(), labels, weights=weights).mean()
        torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)


def test_masked_rows_have_no_gradient_and_no_part_in_the_mean():
    student, teacher, labels = draw(6, 5)
    mask = torch.tensor([True, False, True, True, False, True])
    labels[~mask] = 99
    value, grad = ref.gradient(lambda s: pld_loss(s, teacher, labels, mask=mask), student)
    torch.testing.assert_close(value, pld_loss(student[mask], teacher[mask], labels[mask]))
    assert (grad[~mask] == 0).all()
    assert (grad[mask] != 0).all()


def test_the_order_of_rows_does_not_matter():
    student, teacher, labels = draw(6, 5)
    order = torch.tensor([5, 3, 0, 1, 4, 2])
    torch.testing.assert_close(
        pld_loss(student[order], teacher[order], labels[order]), pld_loss(student, teacher, labels)
    )


def test_equal_teacher_logits_rank_by_class_number():
    student, labels = torch.tensor([[0.3, -1.0, 2.0, 0.5, 0.1]], dtype=torch.float64), torch.tensor([2])
    teacher = torch.tensor([[1.0, 1.0, 0.0, 1.0, -2.0]], dtype=torch.float64)
    lower_first = teacher - torch.arange(5.0, dtype=torch.float64) * 1e-12
    higher_first = teacher + torch.arange(5.0, dtype=torch.float64) * 1e-12
    for topk in (None, 4):
        value = pld_loss(student, teacher, labels, topk=topk)
        torch.testing.assert_close(value, pld_loss(student, lower_first, labels, topk=topk))
        assert not torch.isclose(value, pld_loss(student, higher_first, labels, topk=topk))


def test_only_the_best_classes_have_a_position_under_topk():
    student, teacher, labels = draw(7, 9)
    for topk in (1, 2, 5, 8):
        torch.testing.assert_close(
            pld_loss(student, teacher, labels, topk=topk), plain(student, teacher, labels, topk=topk).mean()
        )
    for topk in (8, 9, 50):
        torch.testing.assert_close(pld_loss(student, teacher, labels, topk=topk), pld_loss(student, teacher, labels))
    assert not torch.isclose(pld_loss(student, teacher, labels, topk=3), pld_loss(student, teacher, labels))


def test_classes_behind_topk_still_learn_to_stay_behind():
    student, teacher, labels = draw(1, 9)
    _, grad = ref.gradient(lambda s: pld_loss(s, teacher, labels, topk=3), student)
    last = teacher.argmin(1).item()
    assert grad[0, last] > 0
    _, exact = ref.gradient(lambda s: plain(s, teacher, labels, topk=3).mean(), student)
    torch.testing.assert_close(grad, exact)


def test_a_class_banned_in_both_models_changes_nothing():
    student, teacher, labels = draw(6, 5)
    wall = torch.full((6, 1), -torch.inf, dtype=torch.float64)
    for weights in ("teacher", "ce"):
        value, grad = ref.gradient(lambda s, weights=weights: pld_loss(s, teacher, labels, weights=weights), student)
        walled, walled_grad = ref.gradient(
            lambda s, weights=weights: pld_loss(s, torch.cat([teacher, wall], 1), labels, weights=weights),
            torch.cat([student, wall], 1),
        )
        torch.testing.assert_close(walled, value)
        torch.testing.assert_close(walled_grad[:, :-1], grad)
        assert (walled_grad[:, -1] == 0).all()


def test_a_teacher_without_doubt_leaves_a_second_derivative():
    student, teacher, labels = draw(3, 4)
    student.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda s: pld_loss(s, 1e4 * teacher, labels), (student,))


def test_tokens_are_rows_and_ignored_labels_are_dropped():
    student, teacher, labels = draw(6, 5)
    labels[[1, 4]] = -100
    kept = labels != -100
    value, grad = ref.gradient(
        lambda s: pld_token_loss(s.view(2, 3, 5), teacher.view(2, 3, 5), labels.view(2, 3)), student
    )
    torch.testing.assert_close(value, pld_loss(student[kept], teacher[kept], labels[kept]))
    assert (grad[~kept] == 0).all()
    rows = pld_token_loss(student.view(2, 3, 5), teacher.view(2, 3, 5), labels.view(2, 3), reduction="none")
    assert rows.shape == (2, 3)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    both = kept & mask.flatten()
    torch.testing.assert_close(
        pld_token_loss(student.view(2, 3, 5), teacher.view(2, 3, 5), labels.view(2, 3), mask=mask),
        pld_loss(student[both], teacher[both], labels[both]),
    )


def test_no_row_to_count_is_refused_unless_allowed():
    student, teacher, labels = draw(3, 4)
    none = torch.zeros(3, dtype=torch.bool)
    with pytest.raises(InputError, match="no row counts"):
        pld_loss(student, teacher, labels, mask=none)
    with pytest.raises(InputError, match="allow_empty=True"):
        pld_loss(student[:0], teacher[:0], labels[:0])
    with pytest.raises(InputError, match="no row counts"):
        pld_token_loss(student[None], teacher[None], torch.full((1, 3), -100))
    value, grad = ref.gradient(lambda s: pld_loss(s, teacher, labels, mask=none, allow_empty=True), student)
    assert value == 0
    assert (grad == 0).all()


@pytest.mark.parametrize("bad", [-1, 4, -100])
def test_a_label_that_is_no_class_is_refused_unless_masked(bad):
    student, teacher, _ = draw(3, 4)
    labels = torch.tensor([0, bad, 1])
    with pytest.raises(InputError, match=rf"0 to 3; got {bad}"):
        pld_loss(student, teacher, labels)
    assert torch.isfinite(pld_loss(student, teacher, labels, mask=torch.tensor([True, False, True])))


def test_wrong_input_is_refused():
    student, teacher, labels = draw(3, 4)
    with pytest.raises(ShapeError, match="over the same classes"):
        pld_loss(student, teacher[:, :3], labels)
    with pytest.raises(ShapeError, match=r"\(N, C\)"):
        pld_loss(student[None], teacher[None], labels[None])
    with pytest.raises(ShapeError, match=r"\(B, T, C\)"):
        pld_token_loss(student, teacher, labels)
    with pytest.raises(ShapeError, match="labels do not fit"):
        pld_loss(student, teacher, labels[:2])
    with pytest.raises(ShapeError, match="labels do not fit"):
        pld_token_loss(student[None], teacher[None], labels)
    with pytest.raises(ShapeError, match="mask does not fit"):
        pld_token_loss(student[None], teacher[None], labels[None], mask=torch.ones(3, dtype=torch.bool))
    with pytest.raises(InputError, match="class ids"):
        pld_loss(student, teacher, labels.double())
    with pytest.raises(ShapeError, match="C >= 2"):
        pld_loss(student[:, :1], teacher[:, :1], torch.zeros(3, dtype=torch.long))
    for tau in (0, -1.0, math.inf):
        with pytest.raises(InputError, match="tau does not fit"):
            pld_loss(student, teacher, labels, tau=tau)
    with pytest.raises(InputError, match="topk does not fit"):
        pld_loss(student, teacher, labels, topk=0)
    with pytest.raises(InputError, match='"teacher", "uniform", "ce"; got student'):
        pld_loss(student, teacher, labels, weights="student")
