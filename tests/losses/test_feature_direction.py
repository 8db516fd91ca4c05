"""KD++: the numbered checks of its description, and what is refused."""

import loss_references as ref
import pytest
import torch
import torch.nn.functional as F

from potstill.errors import InputError, ShapeError
from potstill.losses import class_means, kd_kl, kdpp_loss, nd_loss


def draw(N=8, D=5, C=4, seed=0):
    draws = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(N, D, generator=draws, dtype=torch.float64) for _ in range(2))
    means = torch.randn(C, D, generator=draws, dtype=torch.float64)
    return student, teacher, means, torch.randint(C, (N,), generator=draws)


def logits(N=8, C=4):
    draws = torch.Generator().manual_seed(7)
    return [torch.randn(N, C, generator=draws, dtype=torch.float64) for _ in range(2)]


def plain(student, teacher, means, labels):
    """The definition, sample by sample."""
    rows = []
    for s, t, y in zip(student, teacher, labels.tolist()):
        e = means[y] / means[y].norm()
        rows.append(1 - s @ e / max(s.norm(), t.norm()))
    return torch.stack(rows)


def of_one(student, teacher, mean):
    row = [torch.tensor([x], dtype=torch.float64) for x in (student, teacher, mean)]
    return nd_loss(*row, torch.tensor([0])).item()


def test_hand_values_of_a_short_and_a_long_student():
    assert of_one([3.0, 4.0], [0.0, 10.0], [1.0, 0.0]) == pytest.approx(0.7)
    assert of_one([30.0, 40.0], [0.0, 10.0], [1.0, 0.0]) == pytest.approx(0.4)


def test_the_length_of_a_class_mean_does_not_matter():
    student, teacher, means, labels = draw()
    sizes = torch.tensor([[0.01], [1.0], [3.0], [1e4]], dtype=torch.float64)
    torch.testing.assert_close(
        nd_loss(student, teacher, sizes * means, labels), nd_loss(student, teacher, means, labels)
    )


def test_length_counts_only_up_to_the_teachers():
    teacher, mean = [0.0, 10.0], [1.0, 0.0]
    beyond = [of_one([size * 3.0, size * 4.0], teacher, mean) for size in (2.1, 5.0, 100.0)]
    assert beyond == pytest.approx([0.4] * 3)
    below = [of_one([size * 3.0, size * 4.0], teacher, mean) for size in (0.0, 0.5, 1.0, 1.5)]
    assert below == pytest.approx([1.0, 0.85, 0.7, 0.55])


def test_it_is_zero_only_for_a_long_enough_feature_in_the_direction_of_the_mean():
    assert of_one([6.0, 8.0], [0.0, 10.0], [0.3, 0.4]) == pytest.approx(0, abs=1e-15)
    assert of_one([60.0, 80.0], [0.0, 10.0], [0.3, 0.4]) == pytest.approx(0, abs=1e-15)
    assert of_one([5.9, 7.9], [0.0, 10.0], [0.3, 0.4]) > 0.01
    assert of_one([60.0, 70.0], [0.0, 10.0], [0.3, 0.4]) > 1e-3
    _, teacher, means, labels = draw()
    assert nd_loss(teacher, teacher, means, labels) > 0.1
    rows = nd_loss(*draw(500), reduction="none")
    assert (rows >= 0).all()
    assert (rows <= 2).all()
    assert of_one([-6.0, -8.0], [0.0, 1.0], [0.3, 0.4]) == pytest.approx(2)


def test_the_gradient_is_the_unit_mean_below_the_teachers_length_and_turns_above():
    student, teacher, means, labels = draw()
    units = (means / means.norm(dim=1, keepdim=True))[labels]
    _, grad = ref.gradient(lambda s: nd_loss(s, 100 * teacher, means, labels), student)
    torch.testing.assert_close(grad, -units / (100 * teacher).norm(dim=1, keepdim=True) / 8)
    _, grad = ref.gradient(lambda s: nd_loss(s, 0.01 * teacher, means, labels), student)
    assert grad.abs().sum() > 0.1
    torch.testing.assert_close((grad * student).sum(1), torch.zeros(8, dtype=torch.float64))


def test_no_gradient_reaches_teacher_or_means():
    student, teacher, means, labels = draw()
    for x in (student, teacher, means):
        x.requires_grad_()
    nd_loss(student, teacher, means, labels).backward()
    assert teacher.grad is None
    assert means.grad is None
    assert (student.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("size", [0.3, 1.0, 3.0])
def test_value_and_gradient_equal_a_loop_over_samples(size):
    student, teacher, means, labels = draw()
    exact, exact_grad = ref.gradient(lambda s: plain(size * s, teacher, means, labels).mean(), student)
    value, grad = ref.gradient(lambda s: nd_loss(size * s, teacher, means, labels), student)
    torch.testing.assert_close(value, exact, rtol=0, atol=1e-12)
    torch.testing.assert_close(grad, exact_grad, rtol=0, atol=1e-12)


def test_means_of_training_features_are_a_target():
    student, teacher, _, labels = draw(40)
    means, counts = class_means(teacher, labels, 4)
    assert (counts > 0).all()
    torch.testing.assert_close(nd_loss(student, teacher, means, labels), plain(student, teacher, means, labels).mean())


def test_a_student_feature_of_zeros_costs_one():
    student, teacher, means, labels = draw()
    student[2] = 0
    value, grad = ref.gradient(lambda s: nd_loss(s, teacher, means, labels, reduction="none")[2], student)
    assert value == 1
    assert torch.isfinite(grad).all()


def test_masked_rows_and_their_labels_do_not_count():
    student, teacher, means, labels = draw()
    mask = torch.arange(8) % 3 != 0
    labels[~mask] = -100
    value, grad = ref.gradient(lambda s: nd_loss(s, teacher, means, labels, mask), student)
    torch.testing.assert_close(value, nd_loss(student[mask], teacher[mask], means, labels[mask]))
    assert (grad[~mask] == 0).all()


def test_the_order_of_rows_does_not_matter():
    student, teacher, means, labels = draw()
    order = torch.tensor([5, 3, 7, 0, 1, 6, 4, 2])
    torch.testing.assert_close(
        nd_loss(student[order], teacher[order], means, labels[order]), nd_loss(student, teacher, means, labels)
    )


def test_all_three_terms_add_up_under_their_weights():
    student, teacher, means, labels = draw()
    z_s, z_t = logits()
    wanted = (
        0.5 * F.cross_entropy(z_s, labels)
        + 2.0 * kd_kl(z_s, z_t, temperature=3.0)
        + 1.5 * nd_loss(student, teacher, means, labels)
    )
    weights = {"ce_weight": 0.5, "kd_weight": 2.0, "nd_weight": 1.5, "temperature": 3.0}
    torch.testing.assert_close(kdpp_loss(z_s, z_t, labels, student, teacher, means, **weights), wanted)
    rows = kdpp_loss(z_s, z_t, labels, student, teacher, means, **weights, reduction="none")
    torch.testing.assert_close(rows.mean(), wanted)


def test_without_the_other_terms_and_after_the_warm_up_it_is_plain_kd():
    student, teacher, means, labels = draw()
    z_s, z_t = logits()
    for epoch in (20, 20.5, 300):
        value = kdpp_loss(
            z_s, z_t, labels, student, teacher, means, ce_weight=0, nd_weight=0, epoch=epoch, kd_warmup_epochs=20
        )
        torch.testing.assert_close(value, kd_kl(z_s, z_t, temperature=4.0))


def test_the_warm_up_grows_from_exactly_zero_and_only_for_distillation():
    student, teacher, means, labels = draw()
    z_s, z_t = logits()

    def at(epoch, **weights):
        more = {"epoch": epoch, "kd_warmup_epochs": 20, **weights}
        return kdpp_loss(z_s, z_t, labels, student, teacher, means, **more)

    assert at(0, ce_weight=0, nd_weight=0).item() == 0
    torch.testing.assert_close(at(0), at(0, kd_weight=0))
    torch.testing.assert_close(at(5) - at(0), 0.25 * kd_kl(z_s, z_t, temperature=4.0))


def test_a_class_without_a_mean_is_refused_only_where_it_is_used():
    student, teacher, means, labels = draw()
    means[2] = 0
    assert (labels == 2).any()
    with pytest.raises(InputError, match="mean of a class in the batch is 0"):
        nd_loss(student, teacher, means, labels)
    others = labels != 2
    torch.testing.assert_close(
        nd_loss(student, teacher, means, labels, others),
        plain(student[others], teacher[others], means, labels[others]).mean(),
    )


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_means_that_are_not_finite_are_refused(bad):
    student, teacher, means, labels = draw()
    means[1, 0] = bad
    with pytest.raises(InputError, match="not finite"):
        nd_loss(student, teacher, means, labels)


def test_no_row_to_count_is_refused_unless_allowed():
    student, teacher, means, labels = draw()
    z_s, z_t = logits()
    none = torch.zeros(8, dtype=torch.bool)
    with pytest.raises(InputError, match="no row counts"):
        nd_loss(student[:0], teacher[:0], means, labels[:0])
    with pytest.raises(InputError, match="allow_empty=True"):
        nd_loss(student, teacher, means, labels, none)
    with pytest.raises(InputError, match="no row counts"):
        kdpp_loss(z_s, z_t, labels, student, teacher, means, mask=none)
    assert nd_loss(student.requires_grad_(), teacher, means, labels, none, allow_empty=True).requires_grad


@pytest.mark.parametrize("bad", [-1, 4])
def test_a_label_that_is_no_class_is_refused(bad):
    student, teacher, means, labels = draw()
    labels[3] = bad
    with pytest.raises(InputError, match=rf"0 to 3; got {bad}"):
        nd_loss(student, teacher, means, labels)
    with pytest.raises(InputError, match=rf"0 to 3; got {bad}"):
        kdpp_loss(*logits(), labels, student, teacher, means)


def test_shapes_that_do_not_fit_are_refused():
    student, teacher, means, labels = draw()
    with pytest.raises(ShapeError, match="Project the student's features"):
        nd_loss(student[:, :3], teacher, means, labels)
    with pytest.raises(ShapeError, match="widths differ"):
        nd_loss(student, teacher, means[:, :3], labels)
    with pytest.raises(ShapeError, match="widths differ"):
        nd_loss(student, teacher, means[0], labels)
    with pytest.raises(ShapeError, match="features do not fit"):
        nd_loss(student[None], teacher[None], means, labels)
    with pytest.raises(ShapeError, match="labels do not fit"):
        nd_loss(student, teacher, means, labels[:5])
    with pytest.raises(ShapeError, match=r"logits do not fit"):
        kdpp_loss(*(x[None] for x in logits()), labels, student, teacher, means)


def test_weights_and_epochs_that_do_not_fit_are_refused():
    student, teacher, means, labels = draw()
    given = (*logits(), labels, student, teacher, means)
    for field in ("ce_weight", "kd_weight", "nd_weight", "kd_warmup_epochs"):
        with pytest.raises(InputError, match=f"{field} does not fit"):
            kdpp_loss(*given, epoch=1, **{field: -1.0})
    with pytest.raises(InputError, match="a warm-up needs the epoch"):
        kdpp_loss(*given, kd_warmup_epochs=5)
    with pytest.raises(InputError, match="eps does not fit"):
        nd_loss(student, teacher, means, labels, eps=0)
