import math

import pytest
import torch
import torch.nn.functional as F

from potstill.errors import InputError, ShapeError
from potstill.losses import fit_lelp, kd_kl, lelp_class_logits, lelp_class_probs, lelp_loss, lelp_targets


def made(N=40, D=6, C=2, S=3, seed=0):
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D, generator=draws, dtype=torch.float64) * torch.arange(1, D + 1)
    probs = torch.randn(N, C, generator=draws, dtype=torch.float64).softmax(-1)
    basis = fit_lelp(x, torch.arange(N) % C, C, S)
    return x, probs, (basis.mean, basis.directions, basis.scale)


def test_pseudo_classes_of_a_class_sum_to_its_probability():
    x, probs, basis = made()
    q = lelp_targets(x, probs, *basis)
    assert q.shape == (40, 2, 3)
    assert (q >= 0).all()
    torch.testing.assert_close(q.sum(-1), probs, rtol=0, atol=1e-6)
    single = lelp_targets(x.float(), probs.float(), *(t.float() for t in basis))
    torch.testing.assert_close(single.sum(-1), probs.float(), rtol=0, atol=1e-6)


def test_one_subclass_is_plain_distillation():
    x, probs, basis = made(S=1)
    q = lelp_targets(x, probs, *basis)
    torch.testing.assert_close(q.squeeze(-1), probs)
    logits = torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    entropy = -(probs * probs.log()).sum(-1).mean()
    torch.testing.assert_close(lelp_loss(logits, q), F.cross_entropy(logits, probs))
    torch.testing.assert_close(lelp_loss(logits, q), kd_kl(logits, probs.log()) + entropy)


def test_a_large_beta_splits_evenly_and_a_small_one_puts_each_into_one():
    x, probs, basis = made()
    even = lelp_targets(x, probs, *basis, beta=1e9)
    torch.testing.assert_close(even, (probs / 3).unsqueeze(-1).expand_as(even), rtol=1e-6, atol=1e-9)
    hard = lelp_targets(x, probs, *basis, beta=1e-9)
    torch.testing.assert_close(hard.amax(-1), probs)
    assert (hard.argmax(-1) == lelp_targets(x, probs, *basis).argmax(-1)).all()


def test_hand_values_of_one_unit_along_the_first_of_two_directions():
    h, eye = torch.tensor([[1.0, 0.0]]), torch.eye(2)
    one = lelp_targets(h, torch.ones(1, 1), torch.zeros(1, 2), eye[None], torch.ones(1))
    torch.testing.assert_close(one, torch.tensor([[[0.731059, 0.268941]]]), rtol=0, atol=1e-6)
    two = lelp_targets(h, torch.tensor([[0.6, 0.4]]), torch.zeros(2, 2), eye.expand(2, 2, 2), torch.ones(2))
    torch.testing.assert_close(two[0, 0], torch.tensor([0.438635, 0.161365]), rtol=0, atol=1e-6)


def test_every_class_is_split_by_its_own_mean_directions_and_scale():
    x, probs, (mean, directions, scale) = made()
    for c in range(2):
        along = (x - mean[c]) @ directions[c] / scale[c] / 0.7
        expected = probs[:, c, None] * along.softmax(-1)
        torch.testing.assert_close(lelp_targets(x, probs, mean, directions, scale, beta=0.7)[:, c], expected)


def test_no_gradient_reaches_the_teacher():
    x, probs, basis = made()
    q = lelp_targets(x.requires_grad_(), probs.requires_grad_(), *basis)
    assert not q.requires_grad
    soft = q.clone().requires_grad_()
    logits = torch.zeros(40, 6, dtype=torch.float64, requires_grad=True)
    lelp_loss(logits, soft).backward()
    assert soft.grad is None


def test_the_gradient_is_softmax_minus_target_over_the_rows_and_the_minimum_the_entropy():
    x, probs, basis = made()
    q = lelp_targets(x, probs, *basis)
    logits = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    lelp_loss(logits, q).backward()
    torch.testing.assert_close(logits.grad, (logits.detach().softmax(-1) - q.flatten(1)) / 40)
    entropy = -(q * q.log()).sum((1, 2)).mean()
    torch.testing.assert_close(lelp_loss(q.flatten(1).log(), q), entropy)
    assert lelp_loss(logits, q) > entropy


def test_class_probabilities_are_the_softmax_of_log_sum_exps():
    logits = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    probs = lelp_class_probs(logits, 4)
    sums = torch.stack([logits[:, 3 * c : 3 * c + 3].logsumexp(-1) for c in range(4)], 1)
    torch.testing.assert_close(probs, sums.softmax(-1))
    torch.testing.assert_close(probs, logits.softmax(-1).unflatten(-1, (4, 3)).sum(-1))
    torch.testing.assert_close(lelp_class_logits(logits, 4), sums)


def test_a_pseudo_class_without_probability_costs_nothing_where_the_student_bans_it():
    logits = torch.tensor([[0.0, 0.0, -torch.inf, 0.0]], requires_grad=True)
    loss = lelp_loss(logits, torch.tensor([[[0.5, 0.25], [0.0, 0.25]]]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3))
    assert torch.isfinite(logits.grad).all()


def test_targets_that_cannot_be_made_are_refused():
    x, probs, (mean, directions, scale) = made()
    basis = (mean, directions, scale)
    for beta in (0, -1, math.nan):
        with pytest.raises(InputError, match="beta"):
            lelp_targets(x, probs, *basis, beta=beta)
    with pytest.raises(InputError, match="no probabilities"):
        lelp_targets(x, probs * 1.002, *basis)
    with pytest.raises(InputError, match="no probabilities"):
        lelp_targets(x, torch.tensor([[1.5, -0.5]], dtype=x.dtype).expand(40, 2), *basis)
    with pytest.raises(InputError, match="embeddings are not finite"):
        lelp_targets(x.index_fill(0, torch.tensor([3]), torch.nan), probs, *basis)
    with pytest.raises(InputError, match="no spread"):
        lelp_targets(x, probs, mean, directions, scale * torch.tensor([1.0, 0.0]))
    lelp_targets(x, probs * 1.0009, *basis)


def test_shapes_that_do_not_fit_are_refused():
    x, probs, (mean, directions, scale) = made()
    with pytest.raises(ShapeError, match=r"\(N, D\) and \(N, C\)"):
        lelp_targets(x, probs[:-1], mean, directions, scale)
    with pytest.raises(ShapeError, match="mean does not fit"):
        lelp_targets(x, probs, mean[:1], directions, scale)
    with pytest.raises(ShapeError, match="directions do not fit"):
        lelp_targets(x, probs, mean, directions[:, :-1], scale)
    with pytest.raises(ShapeError, match="null_projector does not fit"):
        lelp_targets(x, probs, mean, directions, scale, torch.eye(5, dtype=x.dtype))
    q = lelp_targets(x, probs, mean, directions, scale)
    with pytest.raises(ShapeError, match=r"\(N, C·S\) and targets \(N, C, S\)"):
        lelp_loss(torch.zeros(40, 5), q)
    with pytest.raises(ShapeError, match="classes do not divide"):
        lelp_class_probs(torch.zeros(4, 7), 3)
    with pytest.raises(InputError, match="floating point"):
        lelp_class_logits(torch.zeros(4, 6, dtype=torch.long), 3)


def test_a_mean_over_no_row_is_refused_and_a_sum_is_zero():
    q = torch.full((2, 2, 2), 0.25)
    logits = torch.full((2, 4), torch.nan, requires_grad=True)
    nothing = torch.zeros(2, dtype=torch.bool)
    with pytest.raises(InputError, match="mask leaves no row"):
        lelp_loss(logits, q, nothing)
    total = lelp_loss(logits, q, nothing, reduction="sum")
    total.backward()
    assert total == 0
    assert (logits.grad == 0).all()
