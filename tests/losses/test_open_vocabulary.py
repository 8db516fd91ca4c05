import math

import loss_references as ref
import pytest
import torch

from potstill.errors import InputError, ShapeError
from potstill.losses import (
    caption_contrastive_loss,
    vlm_align_loss,
    vlm_cls_loss,
    vlm_contrast_loss,
    vlm_mse_loss,
    vlm_ood_losses,
)

LABELS = torch.tensor([0, 2, 1, 2, 0])


def features(N=5, D=6, C=4, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, D, generator=draws, dtype=torch.float64) for rows in (N, N, C)]


def unit(x):
    return x / x.norm()


def plain_align(v, u, w, labels, k, tau):
    values = []
    for n in range(len(v)):
        z_s, z_t = (torch.stack([unit(x[n]) @ unit(c) for c in w]) / tau for x in (v, u))
        if labels is not None and z_t.argmax() != labels[n]:
            continue
        top = z_t.argsort(descending=True)[:k]
        values.append(ref.log_kl(ref.log_softmax(z_t[top]), ref.log_softmax(z_s[top])))
    return sum(values) / len(values)


@pytest.mark.parametrize("k", [2, 3, 4, 256])
@pytest.mark.parametrize("filtered", [True, False])
def test_alignment_equals_the_plain_reading(k, filtered):
    v, u, w = features()
    labels = torch.stack([torch.stack([unit(x) @ unit(c) for c in w]).argmax() for x in u])
    labels[1] = (labels[1] + 1) % 4  # one that the teacher names otherwise
    exact, exact_grad = ref.gradient(lambda x: plain_align(x, u, w, labels if filtered else None, k, 0.2), v)
    value, grad = ref.gradient(lambda x: vlm_align_loss(x, u, w, labels, k=k, tau=0.2, filter_misaligned=filtered), v)
    torch.testing.assert_close(value, exact)
    torch.testing.assert_close(grad, exact_grad)
    assert (grad[1] == 0).all() == filtered


def test_parallel_features_cost_nothing():
    _, u, w = features()
    v = u * torch.tensor([0.1, 1, 2, 5, 100], dtype=torch.float64).unsqueeze(1)
    terms = vlm_ood_losses(v, u, w, LABELS, filter_misaligned=False)
    assert terms["mse"].item() == pytest.approx(0, abs=1e-24)
    assert terms["vlalign"].item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("a", [0.01, 3.0])
def test_the_length_of_features_changes_nothing(a):
    v, u, w = features()
    before = vlm_ood_losses(v, u, w, LABELS)
    for moved in (vlm_ood_losses(a * v, u, w, LABELS), vlm_ood_losses(v, a * u, w, LABELS)):
        for name, value in before.items():
            torch.testing.assert_close(moved[name], value)


def test_hand_values_of_distance_and_contrast():
    assert vlm_mse_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])).item() == 2
    eye = torch.eye(2)
    assert vlm_contrast_loss(eye, eye, tau=1).item() == pytest.approx(0.313262, abs=5e-7)
    assert vlm_contrast_loss(eye.flip(0), eye, tau=1).item() == pytest.approx(1.313262, abs=5e-7)
    assert math.log(1 + math.exp(-1)) == pytest.approx(0.313262, abs=5e-7)


def test_the_distance_is_two_minus_two_cosines():
    v, u, _ = features()
    rows = vlm_mse_loss(v, u, reduction="none")
    torch.testing.assert_close(rows, 2 - 2 * torch.cosine_similarity(v, u))


def test_all_names_give_the_plain_divergence_and_one_name_gives_none():
    v, u, w = features()
    logits = [torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(w).T / 0.07 for x in (v, u)]
    for k in (4, 5, 256):
        value = vlm_align_loss(v, u, w, k=k, filter_misaligned=False)
        torch.testing.assert_close(value, ref.forward_kl(*logits))
    assert vlm_align_loss(v, u, w, k=1, filter_misaligned=False) == 0


def teacher_with_logits(logits, common, C=4):
    """A feature of length 1 whose cosine with text c is 0.8 logits[c] + 0.6 common; the last axis takes the rest."""
    rest = 1 - sum(x * x for x in logits) - common * common
    assert rest > 0
    return torch.tensor([[*logits, common, rest**0.5]], dtype=torch.float64)


TEXT = torch.cat([0.8 * torch.eye(4), torch.full((4, 1), 0.6), torch.zeros(4, 1)], 1).double()


def test_a_constant_on_all_teacher_logits_changes_nothing():
    v = features(1, 6)[0]
    first = teacher_with_logits([0.4, 0.1, -0.2, 0.3], 0.1)
    moved = teacher_with_logits([0.4, 0.1, -0.2, 0.3], -0.5)
    values = [vlm_align_loss(v, u, TEXT, torch.tensor([0]), k=3) for u in (first, moved)]
    torch.testing.assert_close(*values)


def test_teacher_logits_outside_the_top_change_nothing():
    v = features(1, 6)[0]
    first = teacher_with_logits([0.4, 0.1, -0.2, 0.3], 0.1)
    moved = teacher_with_logits([0.4, -0.5, -0.1, 0.3], 0.1)
    values = [vlm_align_loss(v, u, TEXT, torch.tensor([0]), k=2) for u in (first, moved)]
    torch.testing.assert_close(*values)
    inside = teacher_with_logits([0.4, 0.1, -0.2, 0.2], 0.1)
    assert not torch.isclose(vlm_align_loss(v, inside, TEXT, torch.tensor([0]), k=2), values[0])


def test_a_teacher_that_is_wrong_everywhere_teaches_no_names():
    v, u, w = features()
    seen = vlm_align_loss(v, u, w, filter_misaligned=False)
    assert seen > 0
    labels = (torch.nn.functional.normalize(u) @ torch.nn.functional.normalize(w).T).argmax(1)
    wrong = (labels + 1) % 4
    value, grad = ref.gradient(lambda x: vlm_align_loss(x, u, w, wrong), v)
    assert value == 0
    assert (grad == 0).all()
    terms, plain = vlm_ood_losses(v, u, w, wrong), vlm_ood_losses(v, u, w, wrong, filter_misaligned=False)
    assert all(terms[name] == plain[name] for name in ("cls", "mse", "cst"))


def test_captions_of_one_class_are_no_negatives():
    v, g, _ = features(4)
    labels = torch.tensor([0, 1, 0, 2])
    value = caption_contrastive_loss(v, g, labels)
    scores = torch.nn.functional.normalize(v) @ torch.nn.functional.normalize(g).T
    rows = [[0, 1, 3], [0, 1, 2, 3], [1, 2, 3], [0, 1, 2, 3]]
    exact = sum(scores[i, row].logsumexp(0) - scores[i, i] for i, row in enumerate(rows)) / 4
    torch.testing.assert_close(value, exact)
    assert caption_contrastive_loss(v, g, torch.full((4,), 3)) == 0


def test_what_same_class_captions_say_of_one_another_has_no_effect():
    # Rows 0 and 2 share a class. Text 2 is moved where only image 0 sees it: the masked entry alone changes.
    v = torch.eye(3, dtype=torch.float64)
    labels = torch.tensor([0, 1, 0])
    captions = torch.tensor([[0.6, 0.0, 0.8], [0.0, 1.0, 0.0], [0.8, 0.0, 0.6]], dtype=torch.float64)
    swapped = captions.clone()
    swapped[0, 2], swapped[2, 0] = -0.8, -0.8
    torch.testing.assert_close(
        caption_contrastive_loss(v, swapped, labels), caption_contrastive_loss(v, captions, labels)
    )


def test_no_gradient_reaches_teacher_texts_or_captions():
    v, u, w = (x.requires_grad_() for x in features())
    g = features(seed=1)[0].requires_grad_()
    (vlm_ood_losses(v, u, w, LABELS)["total"] + caption_contrastive_loss(v, g, LABELS)).backward()
    assert u.grad is None
    assert w.grad is None
    assert g.grad is None
    assert v.grad.abs().sum() > 0


@pytest.mark.parametrize("contrastive", ["bidirectional", "single"])
def test_the_total_is_the_sum_of_the_parts(contrastive):
    v, u, w = features()
    options = {"tau": 0.1, "contrastive": contrastive}
    terms = vlm_ood_losses(v, u, w, LABELS, k=2, **options)
    assert set(terms) == {"cls", "vlalign", "mse", "cst", "total"}
    assert terms["total"].item() == pytest.approx(sum(terms[n].item() for n in terms if n != "total"), abs=1e-12)
    torch.testing.assert_close(terms["cls"], vlm_cls_loss(v, w, LABELS, tau=0.1))
    torch.testing.assert_close(terms["vlalign"], vlm_align_loss(v, u, w, LABELS, k=2, tau=0.1))
    torch.testing.assert_close(terms["mse"], vlm_mse_loss(v, u))
    torch.testing.assert_close(terms["cst"], vlm_contrast_loss(v, u, **options))


def test_one_direction_is_the_students_half():
    v, u, _ = features()
    both = (vlm_contrast_loss(v, u, contrastive="single") + vlm_contrast_loss(u, v, contrastive="single")) / 2
    torch.testing.assert_close(vlm_contrast_loss(v, u), both)


@pytest.mark.parametrize("junk", [float("nan"), float("inf")])
def test_masked_images_count_nowhere(junk):
    v, u, w = features()
    mask = torch.tensor([True, False, True, True, False])
    labels = LABELS.masked_fill(~mask, -100)
    kept = vlm_ood_losses(v[mask], u[mask], w, LABELS[mask])
    spoilt = [x.masked_fill(~mask.unsqueeze(1), junk) for x in (v, u)]
    value, grad = ref.gradient(lambda x: vlm_ood_losses(x, spoilt[1], w, labels, mask=mask)["total"], spoilt[0])
    torch.testing.assert_close(value, kept["total"])
    assert torch.isfinite(grad).all()
    assert (grad[~mask] == 0).all()
    captions = caption_contrastive_loss(spoilt[0], spoilt[1], labels, mask=mask)
    torch.testing.assert_close(captions, caption_contrastive_loss(v[mask], u[mask], LABELS[mask]))


def test_nothing_that_counts_costs_nothing():
    v, u, w = features()
    none = torch.zeros(5, dtype=torch.bool)
    value, grad = ref.gradient(
        lambda x: (
            vlm_ood_losses(x, u, w, LABELS, mask=none)["total"] + caption_contrastive_loss(x, u, LABELS, mask=none)
        ),
        torch.full_like(v, torch.nan),
    )
    assert value == 0
    assert (grad == 0).all()


def test_a_single_image_has_no_negative():
    v, u, w = features(1)
    terms = vlm_ood_losses(v, u, w, torch.tensor([0]))
    assert terms["cst"] == 0
    assert torch.isfinite(terms["total"])


def test_a_zero_feature_keeps_everything_finite():
    v, u, w = features()
    v[0] = 0
    value, grad = ref.gradient(lambda x: vlm_ood_losses(x, u, w, LABELS)["total"], v)
    assert torch.isfinite(value)
    assert torch.isfinite(grad).all()


def test_half_precision_under_autocast_is_computed_in_full():
    v, u, w = (x.bfloat16() for x in features())
    exact = vlm_ood_losses(v.double(), u.double(), w.double(), LABELS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = vlm_ood_losses(v, u, w, LABELS)
    for name, value in inside.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), exact[name], rtol=1e-4, atol=1e-5)


def test_other_widths_are_refused_and_ask_for_a_head():
    v, u, w = features()
    for given in ((v[:, :4], u, w), (v, u[:, :4], w), (v, u, w[:, :4])):
        with pytest.raises(ShapeError, match="linear head"):
            vlm_ood_losses(*given, LABELS)
    with pytest.raises(ShapeError, match="linear head"):
        caption_contrastive_loss(v, u[:, :4], LABELS)


@pytest.mark.parametrize("bad", [-1, 4])
def test_a_label_without_text_is_refused(bad):
    v, u, w = features()
    with pytest.raises(InputError, match=f"0 to 3; got {bad}"):
        vlm_ood_losses(v, u, w, torch.tensor([0, bad, 1, 2, 3]))


def test_wrong_settings_and_shapes_are_refused():
    v, u, w = features()
    with pytest.raises(InputError, match="k does not fit"):
        vlm_ood_losses(v, u, w, LABELS, k=0)
    with pytest.raises(InputError, match="tau"):
        vlm_ood_losses(v, u, w, LABELS, tau=0)
    with pytest.raises(InputError, match='"bidirectional", "single"'):
        vlm_ood_losses(v, u, w, LABELS, contrastive="both")
    with pytest.raises(InputError, match="filter_misaligned=False"):
        vlm_align_loss(v, u, w)
    with pytest.raises(ShapeError, match="N >= 1"):
        vlm_ood_losses(v[:0], u[:0], w, LABELS[:0])
    with pytest.raises(ShapeError, match="N >= 1"):
        caption_contrastive_loss(v[:0], u[:0], LABELS[:0])
    with pytest.raises(ShapeError, match="labels do not fit"):
        vlm_cls_loss(v, w, LABELS[:3])
    with pytest.raises(InputError, match="class ids"):
        vlm_cls_loss(v, w, LABELS.double())
    with pytest.raises(ShapeError, match="same images"):
        vlm_mse_loss(v, u[:3])
