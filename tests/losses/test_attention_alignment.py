"""AMAD against its method card: the hand values, a plain reading, what must not change it, what it refuses."""

import loss_references as ref
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.errors import InputError, ShapeError
from potstill.losses import AttentionProjection, amad_loss, attention_kl

VARIANTS = ("kl", "mse", "token_kl", "projected_kl")
every_variant = pytest.mark.parametrize("variant", VARIANTS)
without_parameters = pytest.mark.parametrize("variant", VARIANTS[:3])
any_draw = given(seed=st.integers(0, 2**31))


def maps(*shape, seed=0, sharp=2.0):
    draws = torch.Generator().manual_seed(seed)
    return (sharp * torch.randn(*shape, generator=draws, dtype=torch.float64)).softmax(-1)


def pair(B=2, Hs=2, Ht=3, Q=3, K=4, seed=0, sharp=2.0):
    return maps(B, Hs, Q, K, seed=seed, sharp=sharp), maps(B, Ht, Q, K, seed=seed + 1, sharp=sharp)


def options_for(variant, Q=3, K=4, **more):
    """Options of a variant; a projection that is no identity."""
    if variant == "projected_kl":
        projection = AttentionProjection(Q, K).double()
        draws = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for x in projection.parameters():
                x.add_(0.1 * torch.randn(x.shape, generator=draws, dtype=torch.float64))
        more["projection"] = projection
    return {"variant": variant, **more}


def value_and_gradient(student, teacher, **options):
    return ref.gradient(lambda s: amad_loss(s, teacher, **options), student)


# Checks 1 and 2: by hand


@pytest.mark.parametrize(("variant", "value"), [("kl", 0.313262), ("mse", 0.144659), ("token_kl", 0.313262)])
def test_hand_value_of_one_right_and_one_wrong_head(variant, value):
    teacher, student = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    assert amad_loss(student, teacher, variant=variant).item() == pytest.approx(value, abs=5e-7)


@pytest.mark.parametrize(("variant", "value"), [("kl", 0.0011954), ("mse", 0.0367473), ("token_kl", 0.0011954)])
def test_hand_value_of_two_soft_heads(variant, value):
    teacher, student = torch.tensor([[[[0.6, 0.4]]]]), torch.tensor([[[[0.9, 0.1]], [[0.2, 0.8]]]])
    assert amad_loss(student, teacher, variant=variant).item() == pytest.approx(value, abs=5e-8)


# A plain reading of the equations


@without_parameters
@pytest.mark.parametrize("masked", ["nothing", "queries", "keys", "both"])
@pytest.mark.parametrize("tau", [1.0, 0.1])
@pytest.mark.parametrize("head_reduction", ["sum", "mean"])
def test_value_and_gradient_equal_the_plain_reading(variant, masked, tau, head_reduction):
    student, teacher = pair(B=3)
    options = {"variant": variant, "tau": tau, "head_reduction": head_reduction}
    if masked in ("queries", "both"):
        options["query_mask"] = torch.tensor([[True, False, True], [True, True, True], [False, False, False]])
    if masked in ("keys", "both"):
        options["key_mask"] = torch.tensor([[True] * 4, [True, True, False, True], [False, False, True, False]])
    exact, exact_grad = ref.gradient(lambda s: ref.amad(s, teacher, **options), student)
    value, grad = value_and_gradient(student, teacher, **options)
    torch.testing.assert_close(value, exact)
    torch.testing.assert_close(grad, exact_grad)


@every_variant
@pytest.mark.parametrize(
    "shape", [{"Hs": 1}, {"Ht": 1}, {"Q": 1}, {"Hs": 1, "Ht": 1, "Q": 1, "K": 1}, {"Hs": 5, "Ht": 2}]
)
def test_one_head_one_query_and_more_heads_than_the_teacher_are_legal(variant, shape):
    student, teacher = pair(**shape)
    options = options_for(variant, *student.shape[2:])
    value, grad = value_and_gradient(student, teacher, **options)
    assert torch.isfinite(value)
    assert torch.isfinite(grad).all()


# Check 3


@without_parameters
@any_draw
@settings(max_examples=15)
def test_the_order_of_heads_changes_nothing(variant, seed):
    student, teacher = pair(Hs=3, Ht=5, seed=seed)
    draws = torch.Generator().manual_seed(seed)
    moved_s, moved_t = torch.randperm(3, generator=draws), torch.randperm(5, generator=draws)
    value, grad = value_and_gradient(student, teacher, variant=variant)
    moved, moved_grad = value_and_gradient(student[:, moved_s], teacher[:, moved_t], variant=variant)
    torch.testing.assert_close(moved, value)
    torch.testing.assert_close(moved_grad, grad[:, moved_s])


# Check 4


@without_parameters
def test_equal_models_whose_heads_differ_have_a_loss_that_goes_as_the_alignment_hardens(variant):
    x = maps(2, 3, 4, 5)
    losses = [amad_loss(x, x, variant=variant, tau=tau).item() for tau in (1.0, 0.1, 0.01, 1e-5)]
    assert losses[0] > 0.01
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-9


@without_parameters
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_heads_that_are_all_the_same_map_have_no_loss(variant, dtype):
    x = maps(2, 1, 4, 5).to(dtype)
    for H_s, H_t in ((1, 1), (3, 5)):
        value, grad = value_and_gradient(
            x.expand(2, H_s, 4, 5).contiguous(), x.expand(2, H_t, 4, 5), variant=variant, reduction="sum"
        )
        assert abs(value.item()) < 1e-11 if dtype == torch.float64 else abs(value.item()) < 1e-6
        assert torch.isfinite(grad).all()


# Check 5


def test_one_student_head_learns_the_mean_of_the_teachers_heads():
    teacher = maps(2, 4, 3, 5)
    student, other = teacher.mean(1, keepdim=True), maps(2, 1, 3, 5, seed=9)
    by_hand = sum(attention_kl(other, teacher[:, i : i + 1]) for i in range(4))
    torch.testing.assert_close(amad_loss(other, teacher), by_hand)
    logits = student.log().requires_grad_()
    best = amad_loss(logits.softmax(-1), teacher)
    best.backward()
    assert logits.grad.abs().max() < 1e-12
    assert all(best < amad_loss((student.log() + 0.01 * noise).softmax(-1), teacher) for noise in torch.randn(20, 5))


@pytest.mark.parametrize("variant", ["kl", "token_kl", "projected_kl"])
@given(
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    sharp=st.sampled_from([1e-3, 0.1, 1.0, 30.0]),
)
@settings(max_examples=25)
def test_a_divergence_is_never_below_zero(variant, seed, dtype, sharp):
    student, teacher = (x.to(dtype) for x in pair(seed=seed, sharp=sharp))
    options = {"projection": AttentionProjection(3, 4)} if variant == "projected_kl" else {}
    assert amad_loss(student, teacher, variant=variant, **options) >= 0


# Check 6


@without_parameters
@any_draw
@settings(max_examples=10)
def test_padding_queries_and_keys_changes_neither_loss_nor_gradient(variant, seed):
    student, teacher = pair(seed=seed)
    teacher.requires_grad_()
    value, grad = value_and_gradient(student, teacher, variant=variant)
    junk = [torch.nan, torch.inf, -torch.inf, -1.0, 7.0][seed % 5]
    padded = [torch.full((2, x.shape[1], 5, 7), junk, dtype=torch.float64) for x in (student, teacher)]
    for wide, x in zip(padded, (student, teacher)):
        wide[:, :, :3, :4] = x.detach()
    masks = {"query_mask": torch.arange(5).expand(2, 5) < 3, "key_mask": torch.arange(7).expand(2, 7) < 4}
    wide, wide_grad = value_and_gradient(*padded, variant=variant, **masks)
    torch.testing.assert_close(wide, value)
    torch.testing.assert_close(wide_grad[:, :, :3, :4], _without_row_part(grad, student))
    wide_grad[:, :, :3, :4] = 0
    assert (wide_grad == 0).all()
    assert teacher.grad is None


def _without_row_part(grad, rows):
    """A row divided by its sum cannot feel what scales it."""
    return grad - (grad * rows).sum(-1, keepdim=True)


def test_a_query_mask_alone_leaves_the_gradient_of_the_other_rows_as_it_is():
    student, teacher = pair()
    value, grad = value_and_gradient(student, teacher)
    wide = [torch.cat([x, torch.full_like(x[:, :, :2], torch.nan)], 2) for x in (student, teacher)]
    padded, padded_grad = value_and_gradient(*wide, query_mask=torch.arange(5).expand(2, 5) < 3)
    torch.testing.assert_close(padded, value)
    torch.testing.assert_close(padded_grad[:, :, :3], grad)
    assert (padded_grad[:, :, 3:] == 0).all()


@every_variant
def test_a_sample_without_queries_or_without_keys_adds_nothing(variant):
    student, teacher = pair(B=3)
    options = options_for(variant)
    rows = amad_loss(student, teacher, reduction="none", **options)
    for name, size in (("query_mask", 3), ("key_mask", 4)):
        mask = torch.ones(3, size, dtype=torch.bool)
        mask[1] = False
        spoilt = student.clone()
        spoilt[1] = torch.nan
        value, grad = value_and_gradient(spoilt, teacher, **options, **{name: mask})
        torch.testing.assert_close(value, (rows[0] + rows[2]) / 3)
        assert (grad[1] == 0).all()
        assert torch.isfinite(grad).all()


# Check 7


@without_parameters
def test_heads_twice_in_the_teacher_double_the_sum_and_leave_the_mean(variant):
    student, teacher = pair()
    twice = torch.cat([teacher, teacher], 1)
    for head_reduction, factor in (("sum", 2), ("mean", 1)):
        options = {"variant": variant, "head_reduction": head_reduction}
        torch.testing.assert_close(
            amad_loss(student, twice, **options), factor * amad_loss(student, teacher, **options)
        )


@without_parameters
def test_heads_twice_in_the_student_change_nothing(variant):
    student, teacher = pair()
    twice = torch.cat([student, student], 1)
    torch.testing.assert_close(amad_loss(twice, teacher, variant=variant), amad_loss(student, teacher, variant=variant))


# Numerics


@every_variant
def test_the_gradient_is_right_through_maps_and_weights_and_projection(variant):
    student, teacher = pair()
    options = options_for(variant, tau=0.3)
    inputs = [student.requires_grad_(), *(options["projection"].parameters() if variant == "projected_kl" else ())]
    assert torch.autograd.gradcheck(lambda s, *_: amad_loss(s, teacher, **options), inputs)


@every_variant
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_equal_one_hot_and_empty_rows_have_a_finite_gradient(variant, dtype):
    one_hot = torch.eye(4, dtype=dtype)[:3].expand(1, 2, 3, 4)
    other = one_hot.roll(1, -1)
    key_mask = torch.tensor([[True, False, True, True]])
    with_projection = {"projection": AttentionProjection(3, 4)} if variant == "projected_kl" else {}
    for student, teacher, mask in (
        (one_hot, one_hot, None),
        (other, one_hot, None),
        (one_hot, other, key_mask),
        (other, one_hot, key_mask),
    ):
        value, grad = value_and_gradient(
            student.contiguous(), teacher, variant=variant, key_mask=mask, tau=0.05, **with_projection
        )
        assert torch.isfinite(value)
        assert torch.isfinite(grad).all()
        assert grad.dtype == dtype


def test_a_student_row_emptied_by_the_key_mask_costs_what_the_floor_says():
    teacher, student = torch.tensor([[[[0.5, 0.5]]]]), torch.tensor([[[[0.0, 1.0]]]])
    value = amad_loss(student, teacher, key_mask=torch.tensor([[True, False]]), eps=1e-3)
    assert value.item() == pytest.approx(6.907755, abs=1e-5)


def test_bf16_maps_give_the_value_of_the_same_maps_in_float64_but_for_their_rounding():
    for seed in range(20):
        student, teacher = pair(B=4, Q=8, K=64, seed=seed)
        for variant in ("kl", "mse", "token_kl"):
            options = {"variant": variant, "tau": 0.1}
            exact = amad_loss(student, teacher, **options).item()
            rounded = amad_loss(student.bfloat16(), teacher.bfloat16(), **options)
            assert rounded.dtype == torch.float32
            assert rounded.item() == pytest.approx(exact, rel=0.01)


@every_variant
def test_autocast_changes_nothing(variant):
    student, teacher = (x.float() for x in pair())
    options = options_for(variant)
    found = []
    for half in (False, True):
        leaf = student.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            value = amad_loss(leaf, teacher, **options)
        value.backward()
        found.append((value.detach(), leaf.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@without_parameters
def test_memory_grows_with_the_heads_of_both_models_not_with_their_product(variant):
    """No tensor of size B Ht Hs Q K is kept for the backward pass or made on the way."""
    student, teacher = (x.float() for x in pair(B=1, Hs=8, Ht=16, Q=8, K=32))
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor))
            return out

    student.requires_grad_()
    with Sizes():
        amad_loss(student, teacher, variant=variant).backward()
    assert max(sizes) == teacher.numel()


@without_parameters
def test_sum_and_none_belong_to_the_mean(variant):
    student, teacher = pair(B=3)
    rows = amad_loss(student, teacher, variant=variant, reduction="none")
    assert rows.shape == (3,)
    torch.testing.assert_close(amad_loss(student, teacher, variant=variant, reduction="sum"), rows.sum())
    torch.testing.assert_close(amad_loss(student, teacher, variant=variant), rows.mean())


# The projection


def test_a_fresh_projection_gives_kl():
    student, teacher = pair()
    torch.testing.assert_close(
        amad_loss(student, teacher, variant="projected_kl", projection=AttentionProjection(3, 4)),
        amad_loss(student, teacher),
    )


def test_the_projected_mixture_is_made_of_distributions_again():
    """Doubled maps are the same maps; without the division by row sums the loss would be far below 0."""
    student, teacher = pair()
    double = AttentionProjection(3, 4).double()
    with torch.no_grad():
        double.weight.mul_(2)
    torch.testing.assert_close(
        amad_loss(student, teacher, variant="projected_kl", projection=double), amad_loss(student, teacher)
    )


def test_masked_positions_stay_out_of_a_projection():
    student, teacher = pair()
    options = options_for("projected_kl")
    masks = {
        "query_mask": torch.tensor([[True, True, False]] * 2),
        "key_mask": torch.tensor([[True, True, True, False]] * 2),
    }
    value, grad = value_and_gradient(student, teacher, **options, **masks)
    spoilt = student.clone()
    spoilt[:, :, 2], spoilt[..., 3] = torch.nan, torch.inf
    again, again_grad = value_and_gradient(spoilt, teacher, **options, **masks)
    torch.testing.assert_close(again, value)
    torch.testing.assert_close(again_grad, grad)
    assert (grad[:, :, 2] == 0).all()
    assert (grad[..., 3] == 0).all()


def test_a_dead_projection_has_a_finite_loss_and_gradient():
    student, teacher = pair()
    dead = AttentionProjection(3, 4).double()
    with torch.no_grad():
        dead.weight.neg_()
    value, grad = value_and_gradient(student, teacher, variant="projected_kl", projection=dead)
    assert torch.isfinite(value)
    assert (grad == 0).all()


def test_a_projection_of_another_size_is_refused():
    student, teacher = pair()
    with pytest.raises(ShapeError, match=r"map does not fit the projection.*\(\.\.\., 3, 5\).*pad all batches"):
        amad_loss(student, teacher, variant="projected_kl", projection=AttentionProjection(3, 5))
    with pytest.raises(ShapeError, match="projection changes the shape"):
        amad_loss(student, teacher, variant="projected_kl", projection=lambda x: x[:, :1])
    with pytest.raises(ShapeError, match="Q, K >= 1"):
        AttentionProjection(0, 3)


def test_a_projection_goes_with_its_variant_only():
    student, teacher = pair()
    with pytest.raises(InputError, match=r"projection is missing.*AttentionProjection"):
        amad_loss(student, teacher, variant="projected_kl")
    with pytest.raises(InputError, match="projection has no use here"):
        amad_loss(student, teacher, projection=AttentionProjection(3, 4))


# What is refused


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda s, t: (s[:1], t), ShapeError, "differ in B"),
        (lambda s, t: (s[:, :, :2], t), ShapeError, "differ in Q.*resize_attention"),
        (lambda s, t: (s, t[..., :3] / t[..., :3].sum(-1, True)), ShapeError, "differ in K.*resize_attention"),
        (lambda s, t: (s[0], t), ShapeError, r"four axes.*\(B, Hs, Q, K\).*map\[:, None\]"),
        (lambda s, t: (s[:, :0], t), ShapeError, "student has no head"),
        (lambda s, t: (s, t[:, :0]), ShapeError, "teacher has no head"),
        (lambda s, t: (s.log(), t), InputError, "student has negative entries.*softmax"),
        (lambda s, t: (s, t.log()), InputError, "teacher has negative entries"),
        (lambda s, t: (0.9 * s, t), InputError, r"rows of the student do not sum to 1.*1 ± 0.0010.*sums from 0\.9000"),
        (lambda s, t: (s, 1.01 * t), InputError, "rows of the teacher do not sum to 1.*key_mask"),
        (lambda s, t: (None, t), InputError, "no student attention map.*got None.*attention_probs"),
        (lambda s, t: (s, None), InputError, "no teacher attention map.*tap"),
        (lambda s, t: ((s * 9).long(), t), InputError, "student is not floating point"),
    ],
)
def test_maps_that_do_not_fit_are_refused(spoil, error, words):
    with pytest.raises(error, match=words) as caught:
        amad_loss(*spoil(*pair()))
    assert isinstance(caught.value, ValueError)
    assert str(caught.value).startswith("amad_loss: ")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"variant": "kl_token"}, InputError, 'unknown variant.*Did you mean "token_kl"'),
        ({"head_reduction": "max"}, InputError, 'unknown head_reduction; expected "sum", "mean"'),
        ({"reduction": "batchmean"}, InputError, "unknown reduction"),
        ({"tau": 0.0}, InputError, "tau.*above 0"),
        ({"tau": -1.0}, InputError, "tau.*above 0"),
        ({"tau": float("nan")}, InputError, "tau.*finite"),
        ({"eps": 0.0}, InputError, "eps.*above 0"),
        ({"query_mask": torch.ones(2, 3)}, InputError, "mask is not bool"),
        ({"key_mask": torch.ones(2, 3, dtype=torch.bool)}, ShapeError, r"\(B, K\) = \[2, 4\]"),
        ({"query_mask": torch.ones(2, 4, dtype=torch.bool)}, ShapeError, r"\(B, Q\) = \[2, 3\]"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        amad_loss(*pair(), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@any_draw
@settings(max_examples=20)
def test_softmax_in_any_precision_passes_the_check_of_row_sums(dtype, seed):
    draws = torch.Generator().manual_seed(seed)
    student, teacher = ((4 * torch.randn(2, 2, 4, 200, generator=draws)).to(dtype).softmax(-1) for _ in range(2))
    assert torch.isfinite(amad_loss(student, teacher))


def test_the_check_of_row_sums_is_the_cards_in_float32_and_wider_by_its_rounding_in_bf16():
    teacher = torch.full((1, 1, 1, 2), 0.5)
    for dtype, legal, wrong in ((torch.float32, 1.0009, 1.0012), (torch.bfloat16, 1.0039, 1.0079)):
        amad_loss((teacher * legal).to(dtype), teacher)
        with pytest.raises(InputError, match="do not sum to 1"):
            amad_loss((teacher * wrong).to(dtype), teacher)


def test_a_nan_that_counts_is_not_hidden_by_the_checks():
    student, teacher = pair()
    student[0, 0, 0, 0] = torch.nan
    assert amad_loss(student, teacher).isnan()
