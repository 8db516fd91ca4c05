"""crkd_ncd and cosine_cross_entropy: their value by hand, what they refuse, and how they live in a DistillModule."""

import copy

import pytest
import torch
import torch.nn.functional as F

from potstill.errors import RecipeError, ShapeError
from potstill.losses import class_relation_kd, sinkhorn_knopp, swapped_prediction_loss
from potstill.models.novel_classes import NovelClassConfig, NovelClassModel
from potstill.objectives import OBJECTIVES, CosineLabelObjective, NovelClassObjective, Seen
from potstill.taps import Signal
from potstill.teachers import LiveTeacher
from potstill.train import DistillModule

V, B, H, KNOWN, NOVEL, SIDE = 2, 12, 2, 3, 2, 8
ENCODER = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
ENCODER |= {"intermediate_size": 16, "patch_size": 4}


def signals(seed=0):
    draws = torch.Generator().manual_seed(seed)
    cosines = torch.rand(V * B, H, KNOWN + NOVEL, generator=draws, dtype=torch.float64) * 2 - 1
    cosines[:, :, :KNOWN] = cosines[:, :1, :KNOWN]
    student = Signal({"head_cosines": cosines, "known_cosines": cosines[:, 0, :KNOWN]})
    teacher = Signal({"known_cosines": torch.rand(V * B, KNOWN, generator=draws, dtype=torch.float64) * 2 - 1})
    labels = torch.where(torch.arange(B) % 2 == 0, torch.arange(B) % KNOWN, -100).repeat(V)
    return Seen({"labels": labels}, student, teacher), labels


def model(seed=0):
    torch.manual_seed(seed)
    sizes = {"num_labels": KNOWN, "num_novel": NOVEL, "num_heads": H, "projector_width": 16, "cluster_width": 8}
    return NovelClassModel(NovelClassConfig(encoder=ENCODER, image_size=SIDE, **sizes))


@pytest.mark.parametrize("large", [None, 1])
def test_the_loss_is_swapped_prediction_plus_class_relation_of_the_views(large):
    seen, labels = signals()
    objective = NovelClassObjective("ncd", kd_weight=0.3, kd_temperature=2.0, large_crops=large)
    logits = seen.student.outputs["head_cosines"].view(V, B, H, -1).transpose(1, 2)
    is_labeled, large = labels[:B] >= 0, large or V
    targets = torch.zeros(large, H, B, KNOWN + NOVEL, dtype=logits.dtype)
    for v in range(large):
        for h in range(H):
            for b in range(B):
                if is_labeled[b]:
                    targets[v, h, b, labels[b]] = 1
            targets[v, h, ~is_labeled, KNOWN:] = sinkhorn_knopp(logits[v, h, ~is_labeled, KNOWN:]).double()
    swapped = swapped_prediction_loss(logits, targets, num_large_crops=large, temperature=0.1).mean()
    old = seen.teacher.outputs["known_cosines"].view(V, B, KNOWN)[:large]
    relation = class_relation_kd(old, logits[:large], is_labeled, kd_temperature=2.0)
    total = objective.total(seen, None)
    torch.testing.assert_close(total / objective.count(seen.batch), swapped + 0.3 * relation, rtol=1e-4, atol=1e-5)
    assert objective.count(seen.batch) == B


def test_without_distillation_no_teacher_is_asked():
    seen, _ = signals()
    objective = NovelClassObjective("ncd", kd_weight=0)
    assert not objective.reads_teacher
    alone = objective.total(Seen(seen.batch, seen.student, None), None)
    assert alone < NovelClassObjective("ncd", kd_weight=0.5).total(seen, None)


def test_batches_without_new_or_without_known_samples_are_fine():
    seen, labels = signals()
    objective = NovelClassObjective("ncd")
    for same in (torch.ones_like(labels), torch.full_like(labels, -100)):
        assert torch.isfinite(objective.total(Seen({"labels": same}, seen.student, seen.teacher), None))


def test_the_best_head_is_the_one_with_the_smallest_loss_so_far():
    seen, _ = signals()
    objective, student = NovelClassObjective("ncd"), model()
    part = objective.build_part(seen.student, None).train()
    for head in (0, 1):
        part.sums.zero_()
        good = seen.student.outputs["head_cosines"].clone()
        good[B:, head] = good[:B, head]  # views that agree are predicted best
        better = Signal({**seen.student.outputs, "head_cosines": good})
        objective.total(Seen(seen.batch, better, seen.teacher), part)
        before = part.sums.clone()
        objective.total(Seen(seen.batch, better, seen.teacher), part.eval())
        assert torch.equal(part.sums, before)  # a probe in eval mode counts for nothing
        part.train()
        objective.before_step(student, part)
        assert student.best_head.item() == head
    part.add(torch.tensor([torch.nan, 1.0]))
    assert torch.isfinite(part.sums).all()


def test_prototypes_have_length_one_before_every_step():
    for objective in (NovelClassObjective("ncd"), CosineLabelObjective("known")):
        student = model()
        with torch.no_grad():
            student.head.known.weight.mul_(3)
        objective.before_step(student, None)
        torch.testing.assert_close(student.head.known.weight.norm(dim=1), torch.ones(KNOWN))
        with pytest.raises(RecipeError, match="novel_classes"):
            objective.before_step(torch.nn.Linear(2, 2), None)


def test_cosines_are_classified_at_a_tenth_and_rows_without_label_do_not_count():
    seen, labels = signals()
    objective = CosineLabelObjective("known")
    known = seen.student.outputs["known_cosines"].float()
    torch.testing.assert_close(
        objective.total(seen, None) / (labels >= 0).sum(),
        F.cross_entropy(known[labels >= 0] / 0.1, labels[labels >= 0]),
    )
    with pytest.raises(RecipeError, match="no class"):
        objective.total(Seen({"labels": labels + 200}, seen.student), None)


def test_batches_that_are_not_of_views_are_refused():
    seen, labels = signals()
    objective = NovelClassObjective("ncd", views=5)
    with pytest.raises(ShapeError, match="5 views"):
        objective.total(seen, None)
    mixed = labels.clone()
    mixed[0] = 2
    with pytest.raises(RecipeError, match="different labels"):
        NovelClassObjective("ncd").total(Seen({"labels": mixed}, seen.student, seen.teacher), None)


def test_classes_that_do_not_fit_are_refused():
    seen, labels = signals()
    too_large = torch.full_like(labels, KNOWN)
    with pytest.raises(RecipeError, match="no class"):
        NovelClassObjective("ncd").total(Seen({"labels": too_large}, seen.student, seen.teacher), None)
    other = Signal({"known_cosines": seen.teacher.outputs["known_cosines"][:, :2]})
    with pytest.raises(RecipeError, match="other classes"):
        NovelClassObjective("ncd").total(Seen(seen.batch, seen.student, other), None)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("views", 1), ("views", 2.0), ("large_crops", 0), ("large_crops", 3), ("kd_weight", -0.1)),
        *(("temperature", 0), ("kd_temperature", float("nan")), ("sinkhorn_epsilon", 0), ("sinkhorn_iters", 0)),
    ],
)
def test_options_out_of_range_are_refused_by_name(option, value):
    with pytest.raises(RecipeError, match=option):
        NovelClassObjective("ncd", **{option: value})


def test_both_are_registered_under_their_names():
    assert OBJECTIVES.get("crkd_ncd") is NovelClassObjective
    assert OBJECTIVES.get("cosine_cross_entropy") is CosineLabelObjective


def test_a_split_batch_gives_the_mean_over_its_parts_and_not_the_value_of_the_whole():
    student = model().eval()
    teacher = LiveTeacher(copy.deepcopy(student), outputs=["known_cosines"])
    module = DistillModule(student, [NovelClassObjective("ncd")])
    pictures = torch.randn(V, 20, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    labels = torch.where(torch.arange(20) % 3 == 0, torch.arange(20) % KNOWN, -100)

    def loss(rows, counts=None):
        rows = list(rows)
        batch = {"pixel_values": pictures[:, rows].flatten(0, 1), "labels": labels[rows].repeat(V)}
        return module(batch, teacher.signal(batch), counts=counts).loss

    whole, halves = loss(range(20)), [loss(range(10)), loss(range(10, 20))]
    mean = sum(halves) / 2
    assert abs(whole - mean) > 1e-4  # Sinkhorn and the gate see fewer rows
    assert abs(whole - mean) < 0.5 * whole
    # What the trainer does: each part divided by the count of the whole window.
    counts = {"ncd": torch.tensor(20.0)}
    torch.testing.assert_close(loss(range(10), counts) + loss(range(10, 20), counts), mean)
