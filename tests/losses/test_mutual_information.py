import math
import warnings

import pytest
import torch

from potstill.errors import InputError, ShapeError
from potstill.losses import MIAlphaLoss, mi_alpha_bound

ALPHAS = (0.0, 0.1, 0.5, 0.9, 1.0)


def drawn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(scores, log_baseline, alpha):
    """The bound as it is written down, entry by entry."""
    K = len(scores)
    nce = [[sum(math.exp(scores[i, k]) for k in range(K) if k != j) / (K - 1) for j in range(K)] for i in range(K)]
    mixed = [
        [math.log(alpha * nce[i][j] + (1 - alpha) * math.exp(log_baseline[i])) for j in range(K)] for i in range(K)
    ]
    pairs = [(i, j) for i in range(K) for j in range(K) if i != j]
    joint = sum(scores[i, i].item() - mixed[i][j] for i, j in pairs) / len(pairs)
    marginal = sum(math.exp(scores[i, j].item() - mixed[i][i]) for i, j in pairs) / len(pairs)
    return joint, marginal


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("K", [2, 3, 7])
def test_the_bound_equals_the_plain_reading(alpha, K):
    scores, baseline = drawn(K, K, seed=K, scale=2.0), drawn(K, seed=1)
    joint, marginal = plain(scores, baseline, alpha)
    assert mi_alpha_bound(scores, baseline, alpha).item() == pytest.approx(1 + joint - marginal, abs=1e-10)


def test_infonce_has_a_marginal_of_one_and_stays_below_the_log_of_the_others():
    for seed in range(5):
        scores, baseline = drawn(6, 6, seed=seed, scale=5.0), drawn(6)
        joint, marginal = plain(scores, baseline, 1.0)
        assert marginal == pytest.approx(1, abs=1e-12)
        bound = mi_alpha_bound(scores, baseline, 1.0).item()
        assert bound == pytest.approx(joint, abs=1e-10)
        assert bound <= math.log(5)
    assert mi_alpha_bound(100 * torch.eye(6), torch.zeros(6), 1.0).item() == pytest.approx(math.log(5), abs=1e-5)


def test_two_samples_have_no_infonce():
    for seed in range(3):
        assert mi_alpha_bound(drawn(2, 2, seed=seed, scale=4.0), drawn(2), 1.0).item() == pytest.approx(0, abs=1e-12)


def test_alpha_zero_is_tuba():
    scores, baseline = drawn(5, 5), drawn(5, seed=1)
    others = ~torch.eye(5, dtype=torch.bool)
    expected = 1 + (scores.diagonal() - baseline).mean() - (scores - baseline[:, None])[others].exp().mean()
    torch.testing.assert_close(mi_alpha_bound(scores, baseline, 0.0), expected)


@pytest.mark.parametrize(
    ("K", "score", "alpha", "value"),
    [(2, 2.0, 0.0, 2.0), (2, 2.0, 0.5, 0.566219), (2, 2.0, 1.0, 0.0), (3, 3.0, 1.0, 0.644560), (3, 3.0, 0.9, 0.739436)],
)
def test_hand_values(K, score, alpha, value):
    assert mi_alpha_bound(score * torch.eye(K), torch.zeros(K), alpha).item() == pytest.approx(value, abs=5e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_critic_that_sees_no_difference_bounds_by_zero(alpha):
    for c in (-3.0, 0.0, 7.0):
        same = torch.full((4, 4), c, dtype=torch.float64)
        assert mi_alpha_bound(same, same[0], alpha).item() == pytest.approx(0, abs=1e-12)


def test_at_alpha_one_a_constant_on_a_row_changes_nothing():
    scores, baseline = drawn(5, 5), drawn(5, seed=1)
    moved = scores + drawn(5, 1, seed=2, scale=9.0)
    torch.testing.assert_close(mi_alpha_bound(moved, baseline, 1.0), mi_alpha_bound(scores, baseline, 1.0))
    assert abs(mi_alpha_bound(moved, baseline, 0.5) - mi_alpha_bound(scores, baseline, 0.5)) > 0.1


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_order_of_samples_does_not_matter(alpha):
    scores, baseline, order = drawn(6, 6), drawn(6, seed=1), torch.tensor([4, 0, 5, 2, 1, 3])
    torch.testing.assert_close(
        mi_alpha_bound(scores[order][:, order], baseline[order], alpha), mi_alpha_bound(scores, baseline, alpha)
    )


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("junk", [torch.nan, torch.inf, -torch.inf])
def test_invalid_samples_leave_rows_and_columns(alpha, junk):
    valid = torch.tensor([True, False, True, True, False, True])
    scores, baseline = drawn(6, 6), drawn(6, seed=1)
    spoilt = scores.masked_fill(~(valid[:, None] & valid), junk).requires_grad_()
    spoilt_baseline = baseline.masked_fill(~valid, junk).requires_grad_()
    bound = mi_alpha_bound(spoilt, spoilt_baseline, alpha, valid)
    torch.testing.assert_close(bound, mi_alpha_bound(scores[valid][:, valid], baseline[valid], alpha))
    bound.backward()
    assert (spoilt.grad[~valid] == 0).all()
    assert (spoilt.grad[:, ~valid] == 0).all()
    assert (spoilt_baseline.grad[~valid] == 0).all()
    assert torch.isfinite(spoilt.grad).all()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_gradient_is_that_of_the_value(alpha):
    scores, baseline = drawn(4, 4).requires_grad_(), drawn(4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, b: mi_alpha_bound(s, b, alpha), (scores, baseline), atol=1e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_learned_baseline_always_has_a_gradient_even_if_it_is_zero(alpha):
    baseline = drawn(4, seed=1).requires_grad_()
    mi_alpha_bound(drawn(4, 4), baseline, alpha).backward()
    assert (baseline.grad == 0).all() == (alpha == 1)


def test_one_score_far_above_the_rest_costs_no_digit_in_float32():
    # 1 - softmax is 0 here in float32: a difference of the whole and this share would be -inf.
    scores = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)) + 60 * torch.eye(8)
    baseline = torch.zeros(8)
    for alpha in (0.5, 1.0):
        single = scores.clone().requires_grad_()
        bound = mi_alpha_bound(single, baseline, alpha)
        torch.testing.assert_close(
            bound.double(), mi_alpha_bound(scores.double(), baseline.double(), alpha), rtol=1e-5, atol=1e-5
        )
        bound.backward()
        assert torch.isfinite(single.grad).all()


def test_a_huge_score_of_a_wrong_pair_is_cut_before_it_overflows():
    scores = torch.zeros(3, 3)
    scores[0, 1] = 500.0
    bound = mi_alpha_bound(scores, torch.zeros(3), 0.0)
    assert torch.isfinite(bound)
    assert bound.item() == pytest.approx(-math.exp(80) / 6, rel=1e-3)


def test_scores_in_half_precision_are_measured_in_float32():
    scores, baseline = drawn(6, 6).bfloat16(), drawn(6, seed=1).bfloat16()
    bound = mi_alpha_bound(scores, baseline, 0.9)
    assert bound.dtype == torch.float32
    torch.testing.assert_close(bound.double(), mi_alpha_bound(scores.double(), baseline.double(), 0.9))


def test_fewer_than_two_samples_are_refused_or_skipped():
    scores, baseline = drawn(3, 3).requires_grad_(), drawn(3)
    for valid in (torch.tensor([False, True, False]), torch.zeros(3, dtype=torch.bool)):
        with pytest.raises(InputError, match="at least 2 that count"):
            mi_alpha_bound(scores, baseline, 0.9, valid)
        with pytest.warns(UserWarning, match="no mutual information"):
            bound = mi_alpha_bound(scores, baseline, 0.9, valid, on_small="skip")
        bound.backward()
        assert bound == 0
        assert (scores.grad == 0).all()
    with pytest.raises(InputError, match="at least 2"):
        mi_alpha_bound(torch.zeros(0, 0), torch.zeros(0), 0.9)


def test_what_does_not_fit_is_refused():
    scores, baseline = drawn(3, 3), drawn(3)
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(InputError, match=r"a number in \[0, 1\]"):
            mi_alpha_bound(scores, baseline, alpha)
    with pytest.raises(ShapeError, match="not square"):
        mi_alpha_bound(scores[:2], baseline, 0.5)
    with pytest.raises(ShapeError, match="baseline does not fit"):
        mi_alpha_bound(scores, baseline[:2], 0.5)
    with pytest.raises(InputError, match="True = counts"):
        mi_alpha_bound(scores, baseline, 0.5, torch.ones(3))
    with pytest.raises(InputError, match="on_small"):
        mi_alpha_bound(scores, baseline, 0.5, on_small="ignore")
    with pytest.raises(InputError, match="floating point"):
        mi_alpha_bound(scores.long(), baseline, 0.5)


def critic(**more):
    torch.manual_seed(0)
    return MIAlphaLoss(5, 3, hidden=16, out=8, **more)


def test_the_loss_is_the_negative_bound_of_the_critics_scores():
    loss = critic(alpha=0.5).double()
    student, teacher = drawn(7, 3), drawn(7, 5, seed=1)
    scores = loss.teacher_critic(teacher) @ loss.student_critic(student).T
    expected = -mi_alpha_bound(scores, loss.baseline(teacher).squeeze(1), 0.5)
    torch.testing.assert_close(loss(student, teacher), expected)


def test_the_critic_has_the_sizes_of_the_official_code():
    loss = MIAlphaLoss(768, 384)
    shapes = [[tuple(p.shape) for p in net.parameters() if p.ndim == 2] for net in loss.children()]
    assert shapes == [
        [(512, 768), (512, 512), (64, 512)],
        [(512, 384), (512, 512), (64, 512)],
        [(512, 768), (512, 512), (1, 512)],
    ]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradients_reach_the_student_and_every_parameter_but_not_the_teacher(alpha):
    loss = critic(alpha=alpha)
    student, teacher = drawn(7, 3).float().requires_grad_(), drawn(7, 5, seed=1).float().requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0
    assert all(p.grad is not None for p in loss.parameters())


def test_features_of_invalid_samples_count_for_nothing():
    loss = critic()
    valid = torch.tensor([True, True, False, True, False])
    student, teacher = drawn(5, 3).float(), drawn(5, 5, seed=1).float()
    spoilt = student.masked_fill(~valid[:, None], torch.nan).requires_grad_()
    value = loss(spoilt, teacher.masked_fill(~valid[:, None], torch.inf), valid)
    torch.testing.assert_close(value, loss(student[valid], teacher[valid]))
    value.backward()
    assert (spoilt.grad[~valid] == 0).all()
    assert torch.isfinite(spoilt.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in loss.parameters())


def test_a_batch_of_one_can_be_skipped_with_a_gradient_of_zero_for_every_parameter():
    loss = critic(on_small="skip")
    with pytest.warns(UserWarning, match="no mutual information"):
        value = loss(torch.zeros(1, 3), torch.zeros(1, 5))
    value.backward()
    assert value == 0
    assert all((p.grad == 0).all() for p in loss.parameters())


def test_the_critic_works_in_float32_whatever_its_parameters_are():
    loss = critic()
    student, teacher = drawn(7, 3).bfloat16(), drawn(7, 5, seed=1).bfloat16()
    exact = loss(student, teacher)
    assert exact.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(student, teacher), exact)
    torch.testing.assert_close(loss.bfloat16()(student, teacher), exact, rtol=0.05, atol=0.05)


def test_a_queue_adds_the_pairs_of_earlier_batches():
    loss = critic(queue=6)
    batches = [(drawn(4, 3, seed=s).float(), drawn(4, 5, seed=9 + s).float()) for s in range(3)]
    torch.testing.assert_close(loss(*batches[0]), critic()(*batches[0]))
    joined = [torch.cat([a, b]) for a, b in zip(batches[1], batches[0])]
    torch.testing.assert_close(loss(*batches[1]), critic()(*joined))
    # Six places hold the last six of eight pairs: the first two were overwritten.
    kept = [torch.cat([b, a[2:]]) for a, b in zip(batches[0], batches[1])]
    joined = [torch.cat([c, rest]) for c, rest in zip(batches[2], kept)]
    torch.testing.assert_close(loss(*batches[2]), critic()(*joined))


def test_a_queue_is_left_alone_in_eval_mode_and_keeps_nothing_that_does_not_count():
    loss = critic(queue=6).eval()
    student, teacher = drawn(4, 3).float(), drawn(4, 5, seed=1).float()
    loss(student, teacher)
    assert loss.pushed == 0
    student[1] = torch.nan  # not finite: would spoil every later step
    loss.train()(student, teacher, torch.tensor([True, True, True, False]))
    assert loss.pushed == 2
    assert torch.equal(loss.kept_student[:2], student[[0, 2]])


def test_a_queue_larger_than_two_batches_has_gradients_of_the_new_rows_alone():
    loss = critic(queue=8)
    loss(drawn(4, 3).float(), drawn(4, 5).float())
    student = drawn(4, 3, seed=1).float().requires_grad_()
    loss(student, drawn(4, 5, seed=2).float()).backward()
    assert student.grad.shape == (4, 3)
    assert student.grad.abs().max() > 0


def test_sizes_that_cannot_be_are_refused():
    for given in ({"teacher_dim": 0}, {"student_dim": -1}, {"hidden": 0}, {"out": 0}, {"queue": -1}, {"alpha": 2}):
        with pytest.raises(InputError, match=next(iter(given))):
            MIAlphaLoss(**{"teacher_dim": 5, "student_dim": 3, **given})
    loss = critic()
    with pytest.raises(ShapeError, match=r"student features.*\(K, 3\)"):
        loss(torch.zeros(4, 4), torch.zeros(4, 5))
    with pytest.raises(ShapeError, match="numbers of samples differ"):
        loss(torch.zeros(4, 3), torch.zeros(3, 5))
    with pytest.raises(ShapeError, match="mask does not fit"):
        loss(torch.zeros(4, 3), torch.zeros(4, 5), torch.ones(3, dtype=torch.bool))


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_correlated_gaussians_are_bounded_close_to_their_true_information(alpha):
    """Two dimensions, correlation 0.8: 1.0217 nats; K = 64, 1500 steps, mean of the last 300."""
    torch.manual_seed(0)
    loss = MIAlphaLoss(2, 2, alpha=alpha, hidden=64, out=16)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3, fused=True)
    bounds = []
    for _ in range(1500):
        teacher = torch.randn(64, 2)
        student = 0.8 * teacher + 0.6 * torch.randn(64, 2)
        value = loss(student, teacher)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        bounds.append(-value.item())
    assert 0.85 < sum(bounds[-300:]) / 300 < 1.05


def test_a_whole_batch_raises_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        critic()(torch.zeros(4, 3), torch.zeros(4, 5))
