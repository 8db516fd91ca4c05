import doctest

import pytest
import torch

import potstill.data.selection.web_instances
from potstill.data.selection import select_web_instances
from potstill.errors import InputError, ShapeError


def logits(n=20, K=5, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(n, K, generator=draws, dtype=torch.float64) for _ in range(2)]


def of(*rows):
    return torch.tensor(rows, dtype=torch.float64).log()


def test_the_doc_example_runs():
    assert doctest.testmod(potstill.data.selection.web_instances).failed == 0


def test_a_student_equal_to_the_teacher_leaves_the_teachers_certainty():
    teacher, _ = logits()
    chosen = select_web_instances(teacher, teacher, keep_ratio=1.0)
    torch.testing.assert_close(chosen.scores, teacher.softmax(1).amax(1))


def test_hand_values_of_a_student_that_contradicts_and_one_that_agrees():
    # The teacher's share is 0.8 / 1.4 = 0.571429 in the first and 0.8 / 1.7 = 0.470588 in the second.
    against = select_web_instances(of([0.8, 0.2]), of([0.4, 0.6]), keep_ratio=1)
    assert against.scores.item() == pytest.approx(0.628571, abs=5e-7)
    assert against.pseudo_labels.tolist() == [0]
    agreeing = select_web_instances(of([0.8, 0.2]), of([0.9, 0.1]), keep_ratio=1)
    assert agreeing.scores.item() == pytest.approx(0.852941, abs=5e-7)


def test_without_a_student_the_teacher_decides():
    teacher, _ = logits()
    chosen = select_web_instances(teacher, None, keep_ratio=0.5)
    p = teacher.softmax(1)
    torch.testing.assert_close(chosen.scores, p.amax(1))
    assert torch.equal(chosen.pseudo_labels, p.argmax(1)[chosen.indices])


def test_the_order_of_the_pool_does_not_matter():
    teacher, student = logits()
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    chosen = select_web_instances(teacher, student, keep_ratio=0.4)
    moved = select_web_instances(teacher[order], student[order], keep_ratio=0.4)
    assert torch.equal(order[moved.indices], chosen.indices)
    torch.testing.assert_close(moved.weights, chosen.weights)


def test_a_constant_on_a_row_of_logits_changes_nothing():
    teacher, student = logits()
    chosen = select_web_instances(teacher, student, keep_ratio=0.4)
    shift = torch.linspace(-5, 5, 20, dtype=torch.float64).unsqueeze(1)
    moved = select_web_instances(teacher + shift, student - shift, keep_ratio=0.4)
    assert torch.equal(moved.indices, chosen.indices)
    torch.testing.assert_close(moved.scores, chosen.scores)


def test_a_smaller_share_is_a_prefix_of_a_larger_one():
    teacher, student = logits()
    largest = select_web_instances(teacher, student, keep_ratio=1.0).indices.tolist()
    assert sorted(largest) == list(range(20))
    for ratio, number in ((0.05, 1), (0.1, 2), (0.11, 3), (0.6, 12), (0.001, 1)):
        assert select_web_instances(teacher, student, keep_ratio=ratio).indices.tolist() == largest[:number]


def test_a_tenth_of_thirty_is_three():
    teacher, student = logits(30)
    assert len(select_web_instances(teacher, student, keep_ratio=0.1)) == 3


def test_of_equal_scores_the_earlier_comes_first():
    same = of(*[[0.7, 0.3]] * 40)
    assert select_web_instances(same, same, keep_ratio=0.5).indices.tolist() == list(range(20))


def test_weights_are_scores_in_falling_order_and_labels_those_of_the_joint_prediction():
    teacher, student = logits()
    chosen = select_web_instances(teacher, student, keep_ratio=0.4)
    assert torch.equal(chosen.weights, chosen.scores[chosen.indices])
    assert (chosen.weights.diff() <= 0).all()
    p_t, p_s = teacher.softmax(1), student.softmax(1)
    a = (p_t.amax(1) / (p_t.amax(1) + p_s.amax(1))).unsqueeze(1)
    assert torch.equal(chosen.pseudo_labels, (a * p_t + (1 - a) * p_s).argmax(1)[chosen.indices])


def test_a_threshold_keeps_what_reaches_it_and_may_keep_nothing():
    teacher, student = logits()
    scores = select_web_instances(teacher, student, keep_ratio=1.0).scores
    chosen = select_web_instances(teacher, student, threshold=scores.median().item())
    assert sorted(chosen.indices.tolist()) == (scores >= scores.median()).nonzero().flatten().tolist()
    none = select_web_instances(teacher, student, threshold=1.5)
    assert len(none) == len(none.weights) == len(none.pseudo_labels) == 0
    assert len(none.scores) == 20


def test_nothing_chosen_carries_a_gradient():
    teacher, student = (x.requires_grad_() for x in logits())
    assert not select_web_instances(teacher, student, keep_ratio=0.5).weights.requires_grad


def test_how_much_to_keep_is_said_once_and_makes_sense():
    teacher, student = logits()
    with pytest.raises(InputError, match="not said"):
        select_web_instances(teacher, student)
    with pytest.raises(InputError, match="said twice"):
        select_web_instances(teacher, student, keep_ratio=0.5, threshold=0.5)
    for ratio in (0, -0.5, 1.5, float("nan")):
        with pytest.raises(InputError, match="keep_ratio"):
            select_web_instances(teacher, student, keep_ratio=ratio)
    with pytest.raises(InputError, match="threshold"):
        select_web_instances(teacher, student, threshold=float("nan"))


def test_other_classes_an_empty_pool_and_nan_are_refused():
    teacher, student = logits()
    with pytest.raises(ShapeError, match=r"student \[20, 5\]; got \[20, 4\]"):
        select_web_instances(teacher, student[:, :4], keep_ratio=1)
    with pytest.raises(ShapeError, match="n and K >= 1"):
        select_web_instances(teacher[:0], student[:0], keep_ratio=1)
    with pytest.raises(InputError, match="floating point"):
        select_web_instances(teacher.long(), student, keep_ratio=1)
    student[3, 1] = torch.nan
    with pytest.raises(InputError, match="NaN in row 3"):
        select_web_instances(teacher, student, keep_ratio=1)


def test_balanced_keeps_a_share_of_every_class_and_as_many_in_all():
    draws = torch.Generator().manual_seed(5)
    teacher = torch.randn(60, 3, generator=draws) + 4 * torch.eye(3)[torch.arange(60) % 3] * torch.tensor([1.0, 2, 3])
    plain, balanced = (select_web_instances(teacher, None, keep_ratio=0.5, balanced=b) for b in (False, True))
    classes = teacher.argmax(1)
    assert len(plain) == len(balanced) == 30
    assert (classes[plain.indices].bincount(minlength=3) - classes.bincount() / 2).abs().max() > 3
    assert (classes[balanced.indices].bincount(minlength=3) - classes.bincount() / 2).abs().max() <= 1
    for c in range(3):  # of each class the most certain
        kept = balanced.scores[balanced.indices][classes[balanced.indices] == c]
        assert kept.min() >= balanced.scores[classes == c].sort(descending=True).values[: len(kept)].min()
    assert (balanced.weights[:-1] >= balanced.weights[1:]).all()


def test_a_threshold_cannot_be_balanced():
    with pytest.raises(InputError, match="same for all classes"):
        select_web_instances(torch.zeros(3, 2), None, threshold=0.1, balanced=True)
