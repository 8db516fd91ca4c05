"""fused_loss, fused_terms, token_log_probs: value and gradient of the plain forms, memory, errors."""

import math

import pytest
import torch
import torch.nn.functional as F

from potstill.errors import InputError, ShapeError
from potstill.losses import (
    TopK,
    cached_loss,
    dkd,
    generalized_jsd,
    kd_kl,
    reverse_kl,
    sinkhorn_kd_token_loss,
    skew_kl,
    skew_reverse_kl,
    tv_distance,
)
from potstill.losses.fused import LazyLogits, Term, by_rows, fused_loss, fused_terms, token_log_probs

LOSSES = {
    "kd_kl": (kd_kl, {}),
    "reverse_kl": (reverse_kl, {}),
    "reverse_kl_t2": (reverse_kl, {"scale_by_t2": True}),
    "generalized_jsd": (generalized_jsd, {"beta": 0.3}),
    "generalized_jsd_0": (generalized_jsd, {"beta": 0}),
    "generalized_jsd_1": (generalized_jsd, {"beta": 1}),
    "tv_distance": (tv_distance, {}),
    "skew_kl": (skew_kl, {"alpha": 0.2}),
    "skew_reverse_kl": (skew_reverse_kl, {}),
}
every_loss = pytest.mark.parametrize("name", LOSSES)
BUDGET = 30_000  # several chunks of several tiles


def draws(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def head(draw, shape, V=101, D=12, dtype=torch.float32, bias=False, **more):
    hidden, weight = draw(*shape, D).to(dtype).requires_grad_(), draw(V, D).to(dtype).requires_grad_()
    return LazyLogits(hidden, weight, draw(V).to(dtype).requires_grad_() if bias else None, **more)


def leaves_of(lazy):
    return [x for x in (lazy.hidden, lazy.weight, lazy.bias) if x is not None and x.requires_grad]


def gradients(value, lazy):
    return torch.autograd.grad(value, leaves_of(lazy))


def assert_same(lazy, found, expected, rtol=1e-5):
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=rtol, atol=rtol * 0.1)
    pairs = zip(gradients(found, lazy), torch.autograd.grad(expected, leaves_of(lazy), retain_graph=True), strict=True)
    for got, wanted in pairs:
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got, wanted, rtol=rtol, atol=rtol * max(1e-6, wanted.abs().max().item()))


@every_loss
@pytest.mark.parametrize("temperature", [0.05, 1.0, 4.0])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 11)])
def test_value_and_gradient_equal_the_plain_form(name, temperature, shape):
    loss, options = LOSSES[name]
    draw = draws()
    student, teacher = head(draw, shape, dtype=torch.float64), head(draw, shape, D=5, dtype=torch.float64)
    options = {**options, "temperature": temperature}
    found = fused_loss(student, teacher, loss, budget=BUDGET, **options)
    assert_same(student, found, loss(student.whole(), teacher.whole(), **options), rtol=1e-9)


@every_loss
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-4), (torch.bfloat16, 0.03)])
def test_lower_precision_agrees_within_its_digits(name, dtype, rtol):
    loss, options = LOSSES[name]
    draw = draws()
    student, teacher = (head(draw, (4, 9), V=203, D=16, dtype=dtype) for _ in range(2))
    found = fused_loss(student, teacher, loss, budget=BUDGET, **options)
    assert found.dtype == torch.float32
    assert_same(student, found, loss(student.whole(), teacher.whole(), **options), rtol=rtol)


@every_loss
def test_masked_rows_hold_what_they_like(name):
    loss, options = LOSSES[name]
    draw = draws()
    student, teacher = head(draw, (3, 11)), head(draw, (3, 11), D=5)
    mask = draw(3, 11) > 0
    with torch.no_grad():
        student.hidden[~mask], teacher.hidden[~mask] = math.nan, math.inf
    for reduction in ("mean", "sum"):
        found = fused_loss(student, teacher, loss, mask=mask, reduction=reduction, budget=BUDGET, **options)
        expected = loss(student.whole(), teacher.whole(), mask=mask, reduction=reduction, **options)
        torch.testing.assert_close(found, expected)
        hidden, weight = gradients(found, student)
        assert (hidden[~mask] == 0).all()
        # The gradient of the plain product is 0 · NaN there, so the rows are taken out before it.
        kept = LazyLogits(student.hidden.detach()[mask].requires_grad_(), student.weight)
        plain = loss(kept.whole(), teacher.whole()[mask], reduction=reduction, **options)
        for got, wanted in zip((hidden[mask], weight), gradients(plain, kept), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.parametrize("shape", [(4,), (0,), (2, 0)])
def test_nothing_to_count_gives_zero_with_a_graph(shape):
    draw = draws()
    student, teacher = head(draw, shape, bias=True), head(draw, shape)
    value = fused_loss(student, teacher, kd_kl, mask=torch.zeros(shape, dtype=torch.bool))
    assert value.item() == 0
    assert all((g == 0).all() for g in gradients(value, student))


@every_loss
@pytest.mark.parametrize(
    "more",
    [{"bias": True}, {"scale": 0.3}, {"softcap": 2.0}, {"vocab": 60}, {"bias": True, "scale": 2.0, "softcap": 5.0}],
    ids=str,
)
def test_heads_with_bias_scale_cap_or_a_slice_equal_the_plain_form(name, more):
    loss, options = LOSSES[name]
    draw = draws()
    student, teacher = (head(draw, (2, 9), D=D, dtype=torch.float64, **more) for D in (12, 5))
    found = fused_loss(student, teacher, loss, budget=BUDGET, **options)
    assert_same(student, found, loss(student.whole(), teacher.whole(), **options), rtol=1e-9)


@every_loss
def test_a_shared_vocabulary_cuts_both_sides(name):
    loss, options = LOSSES[name]
    draw = draws()
    student, teacher = head(draw, (9,), V=101, dtype=torch.float64), head(draw, (9,), V=120, D=5, dtype=torch.float64)
    found = fused_loss(student, teacher, loss, shared_vocab=77, budget=BUDGET, **options)
    assert_same(student, found, loss(student.whole(), teacher.whole(), shared_vocab=77, **options), rtol=1e-9)


@every_loss
def test_the_teacher_may_be_plain_logits_some_of_them_banned(name):
    loss, options = LOSSES[name]
    draw = draws()
    student, teacher = head(draw, (2, 9), dtype=torch.float64), draw(2, 9, 101)
    if "reverse" not in name and name != "generalized_jsd_1":  # which are infinite then
        teacher[..., 7] = -math.inf
    kept = teacher.clone()
    found = fused_loss(student, teacher, loss, budget=BUDGET, **options)
    assert_same(student, found, loss(student.whole(), teacher, **options), rtol=1e-9)
    assert torch.equal(teacher, kept)


def test_a_word_the_teacher_bans_and_the_student_writes_costs_without_bound():
    draw = draws()
    student, teacher = head(draw, (3,)), draw(3, 101).float()
    teacher[1, 7] = -math.inf
    assert fused_loss(student, teacher, reverse_kl, reduction="sum").item() == math.inf


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_the_plain_form(smoothing):
    draw = draws()
    student = head(draw, (3, 11), bias=True, dtype=torch.float64)
    labels = torch.arange(33).reshape(3, 11) * 3
    labels[1, 4:] = -100
    options = {"label_smoothing": smoothing}
    found = fused_loss(student, labels, F.cross_entropy, budget=BUDGET, **options)
    assert_same(student, found, F.cross_entropy(student.whole().flatten(0, 1), labels.flatten(), **options), rtol=1e-9)


def test_an_option_without_a_slope_goes_through_autograd():
    draw = draws()
    student, classes = head(draw, (33,), dtype=torch.float64), draw(101).abs()
    labels = torch.arange(33) * 3
    found = fused_loss(student, labels, F.cross_entropy, weight=classes, reduction="sum", budget=BUDGET)
    expected = F.cross_entropy(student.whole(), labels, weight=classes, reduction="sum")
    assert_same(student, found, expected, rtol=1e-9)


def test_several_terms_with_masks_weights_and_factors_of_their_own():
    draw = draws()
    student, first = (head(draw, (3, 11), D=D, dtype=torch.float64, softcap=20.0) for D in (12, 5))
    second = draw(3, 11, 101)
    labels = torch.arange(33).reshape(3, 11) * 3
    labels[0, :5] = -100
    mask, weights = draw(3, 11) > 0.3, draw(3, 11).abs()
    terms = [
        Term(kd_kl, (first,), {"temperature": 2.0}, 0.3, mask),
        Term(F.cross_entropy, (labels,), factor=torch.tensor(0.7, dtype=torch.float64)),
        Term(reverse_kl, (second,), factor=-2.0, weights=weights),
        Term(dkd, (first, labels), mask=labels >= 0, factor=0.1),
        Term(tv_distance, (first,), factor=0.0),
    ]
    loss, totals = fused_terms(student, terms, budget=BUDGET)
    s, t = student.whole(), first.whole()
    plain = [
        kd_kl(s, t, temperature=2.0, mask=mask, reduction="sum"),
        F.cross_entropy(s.flatten(0, 1), labels.flatten(), reduction="sum"),
        (reverse_kl(s, second, reduction="none") * weights).sum(),
        dkd(s, t, labels, reduction="sum"),
        tv_distance(s, t, reduction="sum"),
    ]
    torch.testing.assert_close(totals, torch.stack(plain).detach())
    assert not totals.requires_grad
    assert_same(student, loss, 0.3 * plain[0] + 0.7 * plain[1] - 2 * plain[2] + 0.1 * plain[3], rtol=1e-9)


def test_weights_of_rows_scale_value_and_gradient_of_a_single_term():
    draw = draws()
    student, teacher, weights = head(draw, (9,), bias=True), head(draw, (9,)), draw(9).float()
    loss, totals = fused_terms(student, [Term(kd_kl, (teacher,), weights=weights, factor=0.5)], budget=BUDGET)
    plain = (kd_kl(student.whole(), teacher.whole(), reduction="none") * weights).sum()
    torch.testing.assert_close(totals[0], plain.detach())
    assert_same(student, loss, 0.5 * plain, rtol=1e-4)


def test_the_gradient_does_not_depend_on_budget_or_split():
    draw = draws()
    student, teacher = head(draw, (33,), dtype=torch.float64), head(draw, (33,), D=5, dtype=torch.float64)
    whole = gradients(fused_loss(student, teacher, kd_kl, reduction="sum"), student)
    tiny = gradients(fused_loss(student, teacher, kd_kl, reduction="sum", budget=1), student)
    parts = []
    for a, b in ((0, 8), (8, 32), (32, 33)):
        some = (LazyLogits(x.hidden[a:b], x.weight) for x in (student, teacher))
        parts.append(gradients(fused_loss(*some, kd_kl, reduction="sum"), student))
    for i, gradient in enumerate(whole):
        torch.testing.assert_close(tiny[i], gradient)
        torch.testing.assert_close(sum(part[i] for part in parts), gradient)


def test_only_what_needs_a_gradient_gets_one_and_a_weight_tied_to_the_input_gets_both():
    draw = draws()
    student, teacher = head(draw, (9,)), head(draw, (9,))
    frozen = LazyLogits(student.hidden, student.weight.detach())
    gradient = torch.autograd.grad(fused_loss(frozen, teacher, kd_kl), frozen.hidden)[0]
    torch.testing.assert_close(gradient, gradients(fused_loss(student, teacher, kd_kl), student)[0])
    fixed = LazyLogits(student.hidden.detach(), student.weight)
    fused_loss(fixed, teacher, kd_kl).backward()
    assert student.hidden.grad is None
    assert teacher.weight.grad is None
    embedding = draw(101, 12).requires_grad_()
    tied = LazyLogits(embedding[torch.arange(9)].tanh(), embedding)
    found = torch.autograd.grad(fused_loss(tied, teacher, kd_kl), embedding, retain_graph=True)[0]
    plain = torch.autograd.grad(kd_kl(tied.whole(), teacher.whole()), embedding)[0]
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-7)


def test_without_gradients_no_gradient_is_formed(monkeypatch):
    draw = draws()
    student, teacher = head(draw, (9,)), head(draw, (9,))
    expected = fused_loss(student, teacher, kd_kl).item()
    products = []
    mm = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *a, **k: products.append(a) or mm(*a, **k))
    with torch.no_grad():
        value = fused_loss(student, teacher, kd_kl)
    assert value.item() == expected
    assert not value.requires_grad
    assert len(products) == 2  # one of each head


def test_backward_twice_over_a_retained_graph_adds_up():
    draw = draws()
    student, teacher = head(draw, (9,)), head(draw, (9,))
    value = 3 * fused_loss(student, teacher, kd_kl)
    value.backward(retain_graph=True)
    first = student.weight.grad.clone()
    value.backward()
    torch.testing.assert_close(student.weight.grad, 2 * first)


@pytest.mark.parametrize("call", [lambda s, t: fused_loss(s, t, kd_kl), lambda s, t: token_log_probs(s, t.weight[:9, 0].long() * 0).log_probs.sum()])  # fmt: skip  # noqa: E501
def test_a_second_derivative_is_refused(call):
    draw = draws()
    student, teacher = head(draw, (9,)), head(draw, (9,))
    with pytest.raises(InputError, match="cannot be differentiated twice"):
        torch.autograd.grad(call(student, teacher), student.weight, create_graph=True)


def test_autocast_rounds_the_products_as_the_head_would_and_nothing_else():
    draw = draws()
    student, teacher = head(draw, (4, 9), V=203), head(draw, (4, 9), V=203)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = fused_loss(student, teacher, kd_kl, budget=BUDGET)
        expected = kd_kl(F.linear(student.hidden, student.weight), F.linear(teacher.hidden, teacher.weight))
        log_probs = token_log_probs(student, torch.zeros(4, 9, dtype=torch.long)).log_probs
    assert found.dtype == log_probs.dtype == torch.float32
    assert_same(student, found, expected, rtol=0.02)
    exact = student.whole().log_softmax(-1)[..., 0]
    torch.testing.assert_close(log_probs, exact, rtol=0.02, atol=0.1)
    assert gradients(log_probs.sum(), student)[1].dtype == torch.float32


def test_memory_stays_within_the_budget():
    draw = draws()
    student, teacher = head(draw, (500,), V=2000, D=4), head(draw, (500,), V=2000, D=4)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor))
            return out

    with Watch():
        fused_loss(student, teacher, kd_kl, budget=500_000).backward()
    assert max(sizes) * 4 <= 500_000
    assert 4 * 500 * 2000 > 500_000


@pytest.mark.parametrize("K", [None, 5])
@pytest.mark.parametrize("more", [{}, {"bias": True, "scale": 0.5, "softcap": 3.0, "vocab": 90}], ids=str)
def test_log_probs_of_words_equal_the_plain_form(K, more):
    draw = draws()
    lazy = head(draw, (3, 11), dtype=torch.float64, **more)
    ids = torch.arange(33 * (K or 1)).reshape(3, 11, *([K] if K else [])) * 7 % 90
    mask = draw(3, 11) > 0
    found = token_log_probs(lazy, ids.masked_fill(~(mask[..., None] if K else mask), -100), temperature=2.0, mask=mask,
                            budget=BUDGET)  # fmt: skip
    logits = lazy.whole() / 2
    plain = logits.log_softmax(-1).gather(-1, ids.reshape(3, 11, -1)).reshape(ids.shape)
    kept = mask[..., None] if K else mask
    torch.testing.assert_close(found.log_probs, plain.masked_fill(~kept, 0))
    torch.testing.assert_close(found.logsumexp, logits.logsumexp(-1).masked_fill(~mask, 0))
    weights, other = draw(*ids.shape), draw(3, 11)
    value = (found.log_probs.square() * weights).sum() + (found.logsumexp * other).sum()
    expected = (plain.square() * weights * kept).sum() + (logits.logsumexp(-1) * other * mask).sum()
    assert_same(lazy, value, expected, rtol=1e-9)


def kept(teacher, k=5, temperatures=(1.0, 2.0), mode="tail"):
    ids = teacher.topk(k).indices
    tails = {}
    for t in temperatures:
        p = (teacher / t).softmax(-1)
        tails[t] = (1 - p.gather(-1, ids).sum(-1)).log()
    return TopK(ids, teacher.log_softmax(-1).gather(-1, ids), tails, teacher.shape[-1], mode=mode)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("tail", {}),
        ("tail", {"temperature": 2.0}),
        ("tail", {"loss": reverse_kl}),
        ("tail", {"loss": generalized_jsd, "beta": 0.3}),
        ("renormalised", {"temperature": 3.0}),
        ("renormalised", {"loss": tv_distance}),
        ("tail", {"shared_vocab": 80}),
    ],
    ids=lambda value: getattr(value.get("loss"), "__name__", "kd_kl") if isinstance(value, dict) else value,
)
def test_a_cached_teacher_needs_no_whole_logits_of_the_student(mode, options):
    draw = draws()
    student, mask = head(draw, (3, 11), dtype=torch.float64, softcap=9.0), draw(3, 11) > 0
    targets = kept(draw(3, 11, 80 if "shared_vocab" in options else 101), mode=mode)
    options = dict(options)
    loss = options.pop("loss", kd_kl)
    found = fused_loss(student, targets, loss, mask=mask, budget=BUDGET, **options)
    options |= {"mask": mask, "loss": loss.__name__}
    assert_same(student, found, cached_loss(student.whole(), targets, **options), rtol=1e-9)
    # The same by the log-probabilities of the kept words, row by row.
    again = cached_loss(student, targets, **options)
    assert_same(student, again, cached_loss(student.whole(), targets, **options), rtol=1e-9)


def test_a_loss_that_couples_rows_is_refused():
    draw = draws()
    student, teacher = head(draw, (3, 11)), head(draw, (3, 11))
    with pytest.raises(InputError, match=r"may influence each other.*by_rows"):
        fused_loss(student, teacher, sinkhorn_kd_token_loss)

    @by_rows
    def squared(student, teacher, *, reduction):
        return (student - teacher).square().sum(-1)

    found = fused_loss(student, teacher, squared, reduction="sum", budget=BUDGET)
    assert_same(student, found, (student.whole() - teacher.whole()).square().sum(), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature does not fit"),
        ({"reduction": "none"}, 'unknown reduction.*"mean", "sum"'),
        ({"mask": torch.ones(9)}, "mask is not bool"),
        ({"mask": torch.ones(8, dtype=torch.bool)}, "mask does not fit"),
        ({"budget": 0}, "no number of bytes"),
        ({"shared_vocab": 500}, "shared_vocab does not fit"),
    ],
)
def test_wrong_options_are_refused_with_the_words_of_the_plain_loss(options, message):
    draw = draws()
    with pytest.raises(InputError, match=message):
        fused_loss(head(draw, (9,)), head(draw, (9,)), kd_kl, **options)


def test_what_does_not_fit_is_refused():
    draw = draws()
    student = head(draw, (9,))
    with pytest.raises(ShapeError, match="student has 101 classes, teacher 80"):
        fused_loss(student, head(draw, (9,), V=80), kd_kl)
    with pytest.raises(ShapeError, match="leading shapes do not fit"):
        fused_loss(student, head(draw, (8,)), kd_kl)
    with pytest.raises(InputError, match=r"a label is no class; expected 0 to 100; got 101"):
        fused_loss(student, torch.full((9,), 101), F.cross_entropy)
    with pytest.raises(ShapeError, match="ids do not fit"):
        token_log_probs(student, torch.zeros(8, dtype=torch.long))
    with pytest.raises(ShapeError, match="hidden states and output head do not fit"):
        LazyLogits(torch.ones(3, 4), torch.ones(8, 5))
    with pytest.raises(InputError, match="there already"):
        fused_terms(student.whole(), [Term(kd_kl, (student,))])
    with pytest.raises(InputError, match="there is no term"):
        fused_terms(student, [])
