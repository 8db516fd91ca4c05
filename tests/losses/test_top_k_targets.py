"""Losses against a teacher of whom some classes were kept: references of a few lines, bounds, means over draws."""

import pytest
import torch

from potstill.errors import InputError, ShapeError
from potstill.losses import LazyLogits, TopK, cached_loss, generalized_jsd, kd_kl, reverse_kl, tv_distance
from potstill.losses._cached_term import cached_term
from potstill.losses.fused import Term, fused_terms

WHOLE = {"kd_kl": kd_kl, "reverse_kl": reverse_kl, "generalized_jsd": generalized_jsd, "tv_distance": tv_distance}
every_loss = pytest.mark.parametrize("name", list(WHOLE))
V = 40


def logits(rows=6, seed=0, dtype=torch.float64, spread=3.0):
    return spread * torch.randn(rows, V, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def keep(teacher, k, temperatures=(1.0,), mode="tail"):
    values, ids = teacher.log_softmax(-1).topk(k)
    tail = {t: (teacher / t).log_softmax(-1).scatter(-1, ids, -torch.inf).logsumexp(-1) for t in temperatures}
    return TopK(ids, values, tail, teacher.shape[-1], mode=mode)


def bins(x, ids, temperature):
    """Reference: the kept classes and all others in one, as probabilities."""
    p = (x / temperature).softmax(-1)
    kept = p.gather(-1, ids)
    return torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], -1)


@every_loss
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("k", [1, 7, V - 1])
def test_tail_is_the_loss_of_the_same_name_over_k_plus_one_classes(name, temperature, k):
    teacher, student = logits(seed=1), logits(seed=2).requires_grad_()
    targets = keep(teacher, k, (temperature,))
    value = cached_loss(student, targets, loss=name, temperature=temperature)
    (grad,) = torch.autograd.grad(value, student)
    q = bins(student, targets.ids, temperature)
    reference = WHOLE[name](temperature * q.log(), temperature * bins(teacher, targets.ids, temperature).log(),
                            temperature=temperature)  # fmt: skip
    (expected,) = torch.autograd.grad(reference, student)
    torch.testing.assert_close(value, reference)
    # Both take a tail for one minus a sum; where it is tiny its last digits are anybody's guess.
    torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-5)


@every_loss
def test_tail_is_a_lower_bound_that_rises_with_k(name):
    teacher, student = logits(seed=1), logits(seed=2)
    values = [cached_loss(student, keep(teacher, k), loss=name).item() for k in (1, 4, 16, 39)]
    assert values == sorted(values)
    assert values[-1] <= WHOLE[name](student, teacher).item() + 1e-12


@every_loss
def test_all_classes_give_the_loss_itself(name):
    teacher, student = logits(seed=1), logits(seed=2).requires_grad_()
    value = cached_loss(student, keep(teacher, V), loss=name)
    reference = WHOLE[name](student, teacher)
    torch.testing.assert_close(value, reference)
    torch.testing.assert_close(torch.autograd.grad(value, student), torch.autograd.grad(reference, student))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_renormalised_is_forward_kl_to_the_kept_classes_alone(temperature):
    teacher, student = logits(seed=1), logits(seed=2).requires_grad_()
    targets = keep(teacher, 5, mode="renormalised")
    value = cached_loss(student, targets, temperature=temperature)
    p = (teacher.gather(-1, targets.ids) / temperature).softmax(-1)
    log_q = (student / temperature).log_softmax(-1).gather(-1, targets.ids)
    reference = temperature**2 * (p * (p.log() - log_q)).sum(-1).mean()
    torch.testing.assert_close(value, reference)
    torch.testing.assert_close(torch.autograd.grad(value, student), torch.autograd.grad(reference, student))


def draw(teacher, n, seed):
    """Draws with repetition, one place for each different class."""
    p = teacher.softmax(-1)
    picked = torch.multinomial(p, n, replacement=True, generator=torch.Generator().manual_seed(seed))
    counts = torch.zeros_like(p).scatter_add_(-1, picked, torch.ones_like(p[:, :1]).expand(-1, n).contiguous())
    values, ids = counts.topk(min(n, V))
    return TopK(ids, teacher.log_softmax(-1).gather(-1, ids), {}, V, values, mode="sampled")


def test_sampled_is_unbiased_in_value_and_gradient_and_top_k_is_not():
    teacher, student = logits(2, seed=1, spread=1.5), logits(2, seed=2, spread=1.5).requires_grad_()
    values, grads = [], []
    for seed in range(3000):
        value = cached_loss(student, draw(teacher, 8, seed))
        values.append(value.detach())
        grads.append(torch.autograd.grad(value, student)[0])
    exact = kd_kl(student, teacher)
    values, grads = torch.stack(values), torch.stack(grads)
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean() - exact) < 4 * error
    (expected,) = torch.autograd.grad(exact, student)
    errors = grads.std(0) / len(grads) ** 0.5
    assert ((grads.mean(0) - expected).abs() < 5 * errors + 1e-3).all()  # of a rare class no draw may have been seen
    renormalised = cached_loss(student, keep(teacher, 8, mode="renormalised"))
    assert abs(renormalised - exact) > 20 * error


@pytest.mark.parametrize("mode", ["tail", "renormalised", "sampled"])
def test_masked_positions_may_hold_nan_and_take_no_part(mode):
    teacher, student = logits(seed=1), logits(seed=2)
    targets = draw(teacher, 8, 0) if mode == "sampled" else keep(teacher, 5, mode=mode)
    mask = torch.tensor([True, True, False, True, False, True])
    clean = cached_loss(student[mask], targets[mask])
    spoilt = TopK(
        targets.ids,
        targets.log_probs.masked_fill(~mask[:, None], torch.nan),
        {t: x.masked_fill(~mask, torch.nan) for t, x in targets.tail.items()},
        V,
        targets.counts,
        mode,
    )
    student = student.masked_fill(~mask[:, None], torch.nan).requires_grad_()
    value = cached_loss(student, spoilt, mask=mask)
    torch.testing.assert_close(value, clean)
    value.backward()
    assert torch.isfinite(student.grad).all()
    assert student.grad[~mask].abs().sum() == 0
    rows = cached_loss(student, spoilt, mask=mask, reduction="none")
    assert rows[~mask].tolist() == [0, 0]
    torch.testing.assert_close(rows.sum() / 4, clean)


def test_nothing_to_count_gives_zero_with_a_graph():
    student = logits().requires_grad_()
    value = cached_loss(student, keep(logits(seed=1), 3), mask=torch.zeros(6, dtype=torch.bool))
    value.backward()
    assert value == 0
    assert student.grad.abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_computed_in_full_precision(dtype):
    teacher, student = logits(seed=1, dtype=torch.float32), logits(seed=2, dtype=torch.float32).to(dtype)
    value = cached_loss(student, keep(teacher, 5))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, cached_loss(student.float(), keep(teacher, 5)))


def test_a_student_surer_than_floats_can_tell_keeps_a_finite_gradient():
    teacher = logits(seed=1, dtype=torch.float32)
    student = (60 * torch.nn.functional.one_hot(teacher.argmax(-1), V)).float().requires_grad_()
    value = cached_loss(student, keep(teacher, 5))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_logits_that_are_never_formed_give_the_same_value_and_gradient(reduction):
    draws = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 8, generator=draws, dtype=torch.float64).requires_grad_()
    head = torch.randn(V + 3, 8, generator=draws, dtype=torch.float64).requires_grad_()
    mask = torch.tensor([True, True, False, True, False, True])
    options = {"temperature": 2.0, "mask": mask, "shared_vocab": V, "reduction": reduction}
    found = []
    for student in (LazyLogits(hidden, head), hidden @ head.T):
        value = cached_loss(student, keep(logits(seed=1), 5, (2.0,)), **options)
        found.append((value.detach(), *torch.autograd.grad(value.sum(), (hidden, head))))
    for lazy, formed in zip(*found):
        torch.testing.assert_close(lazy, formed)


@pytest.mark.parametrize("mode", ["tail", "renormalised", "sampled"])
def test_it_is_one_term_among_others_on_logits_that_are_never_formed(mode):
    draws = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 8, generator=draws, dtype=torch.float64).requires_grad_()
    head = torch.randn(V, 8, generator=draws, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([3, 5, -100, 7, 9, 11])
    targets = draw(logits(seed=1), 8, 0) if mode == "sampled" else keep(logits(seed=1), 5, mode=mode)
    mask = torch.tensor([True, True, False, True, False, True])
    term = cached_term(targets, "kd_kl", {"scale_by_t2": False}, mask)
    assert term.name == "kd_kl"
    loss, totals = fused_terms(
        LazyLogits(hidden, head), [term, Term(torch.nn.functional.cross_entropy, (labels,), factor=0.5)], budget=2000
    )
    formed = hidden @ head.T
    plain = cached_loss(formed, targets, mask=mask, reduction="sum")
    torch.testing.assert_close(totals[0], plain.detach())
    plain = plain + 0.5 * torch.nn.functional.cross_entropy(formed, labels, reduction="sum")
    torch.testing.assert_close(loss, plain)
    for ours, theirs in zip(torch.autograd.grad(loss, (hidden, head)), torch.autograd.grad(plain, (hidden, head))):
        torch.testing.assert_close(ours, theirs)


def test_a_cut_vocabulary_is_that_of_the_plain_loss():
    teacher, student = logits(seed=1), torch.cat([logits(seed=2), logits(seed=3)], -1)
    value = cached_loss(student, keep(teacher, V), shared_vocab=V)
    torch.testing.assert_close(value, kd_kl(student, teacher, shared_vocab=V))


def test_targets_stand_where_logits_would():
    targets = keep(logits(6).view(2, 3, V), 5)
    assert targets.shape == (2, 3, V)
    assert targets.ndim == 3
    part = targets[:, :-1]
    assert part.shape == (2, 2, V)
    assert part.tail[1.0].shape == (2, 2)
    assert part.to("cpu").ids.equal(targets.ids[:, :-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 2.0}, "not known at this temperature"),
        ({"mode": "sampled"}, "the targets are the most likely classes"),
        ({"mode": "renormalised", "loss": "reverse_kl"}, "infinite"),
        ({"loss": "dist_loss"}, "needs the teacher's logits of all classes"),
        ({"mode": "tails"}, 'Did you mean "tail"'),
        ({"reduction": "avg"}, "unknown reduction"),
        ({"beta": 2.0}, "beta does not fit"),
        ({"temperature": 0.0}, "temperature does not fit"),
        ({"mask": torch.ones(6)}, "mask is not bool"),
    ],
)
def test_what_cannot_be_computed_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        cached_loss(logits(), keep(logits(seed=1), 5), **change)


@pytest.mark.parametrize("change", [{"loss": "reverse_kl"}, {"temperature": 2.0}])
def test_draws_estimate_the_forward_kl_at_temperature_one_alone(change):
    with pytest.raises(InputError, match="forward KL at temperature 1 alone"):
        cached_loss(logits(), draw(logits(seed=1), 8, 0), **change)


@pytest.mark.parametrize(
    ("student", "options"), [(logits()[:, :30], {}), (logits()[:3], {}), (logits(), {"shared_vocab": 20})]
)
def test_shapes_that_do_not_fit_are_refused(student, options):
    with pytest.raises(ShapeError):
        cached_loss(student, keep(logits(seed=1), 5), **options)


def test_classes_that_are_no_numbers_are_refused():
    with pytest.raises(InputError, match="not floating point"):
        cached_loss(logits().long(), keep(logits(seed=1), 5))
