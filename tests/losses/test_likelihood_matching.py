import math

import pytest
import torch

from potstill.errors import InputError, ShapeError
from potstill.losses import alm_loss, alm_loss_from_logprobs

B, L_S, L_T, V_S, V_T = 3, 9, 7, 11, 13
BOUNDARY_S, BOUNDARY_T = torch.arange(V_S) < 3, torch.arange(V_T) < 4
# Chunk of every token; both sides have 4 chunks in rows 0 and 1, row 2 lacks one on the teacher's side.
CHUNKS_S = torch.tensor([[-1, 0, 0, 1, 1, 2, 3, 3, -1], [-1, 0, 1, 1, 2, 2, 2, 3, -1], [-1, 0, 0, 1, 2, 2, 3, -1, -1]])
CHUNKS_T = torch.tensor([[-1, 0, 1, 1, 2, 3, 3], [-1, 0, 0, 1, 2, 3, 3], [-1, 0, 1, 1, 2, 2, -1]])
MASK_S = torch.ones(B, L_S, dtype=torch.bool)
MASK_T = torch.ones(B, L_T, dtype=torch.bool)
MASK_S[1, 1] = False  # the whole chunk 0 of row 1
BOTH = {"student_boundary": BOUNDARY_S, "teacher_boundary": BOUNDARY_T}


def as_mask(chunks, C=4):
    return chunks.unsqueeze(-1) == torch.arange(C)


def draw(seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    student = torch.randn(B, L_S, V_S, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    teacher = torch.randn(B, L_T, V_T, generator=g, dtype=torch.float64).to(dtype)
    ids_s, ids_t = torch.randint(V_S, (B, L_S), generator=g), torch.randint(V_T, (B, L_T), generator=g)
    return student, teacher, ids_s, ids_t


def call(student, teacher, ids_s, ids_t, **options):
    return alm_loss(student, teacher, ids_s, ids_t, CHUNKS_S, CHUNKS_T, MASK_S, MASK_T, **options)


def plain(student, teacher, ids_s, ids_t, append_boundary=False, merge_threshold=None, temperature=100.0, eps=1e-6):
    """Follow the text of the method with loops."""
    total, groups = 0.0, 0
    lp_s, lp_t = student.log_softmax(-1), teacher.log_softmax(-1)
    for b in range(B):
        found = []
        for c in range(4):
            sides = []
            for lp, ids, chunks, mask, boundary in (
                (lp_s, ids_s, CHUNKS_S, MASK_S, BOUNDARY_S),
                (lp_t, ids_t, CHUNKS_T, MASK_T, BOUNDARY_T),
            ):
                at = [i for i in range(1, ids.shape[1]) if chunks[b, i] == c and mask[b, i]]
                if at:
                    text = sum(lp[b, i - 1, ids[b, i]] for i in at)
                    sides.append((text, lp[b, at[-1]][boundary].exp().sum().log()))
            if len(sides) == 2:
                found.append(sides)
        joined, s, t = [], 0.0, 0.0
        for n, ((s_c, s_end), (t_c, t_end)) in enumerate(found):
            s, t = s + s_c, t + t_c
            if merge_threshold is None or t_end.exp() > merge_threshold or n == len(found) - 1:
                joined.append((s + s_end, t + t_end) if append_boundary else (s, t))
                s, t = 0.0, 0.0
        for s, t in joined:
            y, x = t / temperature - eps, s / temperature - eps
            total = total - (y.exp() * x + (1 - y.exp()) * (1 - x.exp()).log())
        groups += len(joined)
    return total / groups


@pytest.mark.parametrize("temperature", [1.0, 4.0, 100.0])
@pytest.mark.parametrize("merge", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("append", [False, True])
def test_value_and_gradient_are_those_of_the_plain_form(append, merge, temperature):
    student, teacher, ids_s, ids_t = draw()
    options = {"append_boundary": append, "merge_threshold": merge, "temperature": temperature}
    value = call(student, teacher, ids_s, ids_t, **options, **BOTH)
    expected = plain(student, teacher, ids_s, ids_t, **options)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, student), torch.autograd.grad(expected, student))


def test_masks_and_numbers_of_chunks_are_the_same():
    student, teacher, ids_s, ids_t = draw()
    by_mask = alm_loss(student, teacher, ids_s, ids_t, as_mask(CHUNKS_S), as_mask(CHUNKS_T), MASK_S, MASK_T)
    assert torch.equal(by_mask, call(student, teacher, ids_s, ids_t))


@pytest.mark.parametrize(
    ("temperature", "eps", "t", "s", "expected"),
    [
        (1.0, 0.0, math.log(0.5), math.log(0.25), 0.836988),
        (1.0, 0.0, math.log(0.5), math.log(0.5), 0.693147),
        (100.0, 1e-6, -2.0, -2.0, 0.0972687),
        (100.0, 1e-6, -2.0, -3.0, 0.0991404),
    ],
)
def test_values_worked_by_hand(temperature, eps, t, s, expected):
    s, t = torch.tensor([[s]], dtype=torch.float64), torch.tensor([[t]], dtype=torch.float64)
    value = alm_loss_from_logprobs(s, t, torch.tensor([[True]]), temperature=temperature, eps=eps)
    assert value.item() == pytest.approx(expected, abs=6e-7)


def test_equal_models_cost_the_entropy_and_pull_nowhere():
    t = -torch.rand(2, 5, dtype=torch.float64) * 8
    s = t.clone().requires_grad_()
    loss = alm_loss_from_logprobs(s, t, torch.ones(2, 5, dtype=torch.bool))
    p = (t / 100 - 1e-6).exp()
    torch.testing.assert_close(loss.detach(), -(p * p.log() + (1 - p) * (1 - p).log()).mean())
    loss.backward()
    assert s.grad.abs().max() < 1e-12


def test_with_one_tokenizer_and_one_token_a_chunk_only_two_log_probabilities_matter():
    student, _, ids, _ = draw()
    teacher = torch.randn_like(student)
    chunks, mask = torch.arange(-1, L_S - 1).expand(B, -1), torch.ones(B, L_S, dtype=torch.bool)
    value = alm_loss(student, teacher, ids, ids, chunks, chunks, mask, mask)
    log_s, log_t = (x.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0] for x in (student, teacher))
    torch.testing.assert_close(value, alm_loss_from_logprobs(log_s, log_t, torch.ones_like(log_s, dtype=torch.bool)))


def test_merging_everything_leaves_the_sum_and_merging_nothing_the_chunks():
    student, teacher, ids_s, ids_t = draw()
    finest = call(student, teacher, ids_s, ids_t)
    torch.testing.assert_close(call(student, teacher, ids_s, ids_t, merge_threshold=0.0, **BOTH), finest)
    s, t = torch.tensor([[-1.0, -2.0, -4.0]]), torch.tensor([[-2.0, -1.0, -0.5]])
    ends, valid = torch.tensor([[-0.1, -0.1, -0.1]]), torch.tensor([[True, False, True]])
    one = alm_loss_from_logprobs(s, t, valid, ends, ends, merge_threshold=1.0)
    torch.testing.assert_close(
        one, alm_loss_from_logprobs(torch.tensor([[-5.0]]), torch.tensor([[-2.5]]), torch.tensor([[True]]))
    )


def test_what_is_not_read_does_not_matter():
    student, teacher, ids_s, ids_t = draw()
    value = call(student, teacher, ids_s, ids_t, append_boundary=True, **BOTH)
    probs = teacher.softmax(-1)
    spread = probs.clone()
    for b in range(B):
        for i in range(L_T):
            following = ids_t[b, min(i + 1, L_T - 1)]
            free = [v for v in range(V_T) if v != following and not BOUNDARY_T[v]]
            spread[b, i, free] = probs[b, i, free].flip(0)  # the normaliser stays as it was
    torch.testing.assert_close(call(student, spread.log(), ids_s, ids_t, append_boundary=True, **BOTH), value)


def test_exchanging_two_equal_models_changes_nothing():
    student, _, ids, _ = draw()
    one = alm_loss(student, student, ids, ids, CHUNKS_S, CHUNKS_S, MASK_S, MASK_S)
    other = alm_loss(student.detach(), student, ids, ids, CHUNKS_S, CHUNKS_S, MASK_S, MASK_S)
    assert torch.equal(one, other)


def test_padding_never_matters():
    student, teacher, ids_s, ids_t = draw()
    value = call(student, teacher, ids_s, ids_t, append_boundary=True, merge_threshold=0.3, **BOTH)

    def padded(x, fill):
        return torch.cat([x, torch.full((B, 2, *x.shape[2:]), fill, dtype=x.dtype)], dim=1)

    longer = alm_loss(
        padded(student, math.nan), padded(teacher, math.nan), padded(ids_s, 0), padded(ids_t, 0),
        padded(CHUNKS_S, 1), padded(CHUNKS_T, 1), padded(MASK_S, False), padded(MASK_T, False),
        append_boundary=True, merge_threshold=0.3, **BOTH,
    )  # fmt: skip
    assert torch.equal(longer, value)
    grad = torch.autograd.grad(longer, student)[0]
    assert torch.isfinite(grad).all()


def test_rows_add_up_to_the_batch():
    student, teacher, ids_s, ids_t = draw()
    whole = call(student, teacher, ids_s, ids_t, reduction="sum")
    parts = [
        alm_loss(*(x[b : b + 1] for x in (student, teacher, ids_s, ids_t, CHUNKS_S, CHUNKS_T, MASK_S, MASK_T)),
                 reduction="sum")
        for b in range(B)
    ]  # fmt: skip
    torch.testing.assert_close(whole, sum(parts))


@pytest.mark.parametrize("diff", ["binary_ce", "abs", "reverse_binary_kl", "binary_kl_limit"])
def test_every_difference_is_least_at_the_teacher(diff):
    t = torch.tensor([[-2.0, -0.3, -30.0]], dtype=torch.float64)
    valid = torch.ones_like(t, dtype=torch.bool)

    def loss(s):
        return alm_loss_from_logprobs(s, t, valid, diff=diff, temperature=2.0, reduction="sum")

    least = loss(t)
    assert all(loss(t * factor) > least for factor in (0.5, 0.9, 1.1, 2.0))
    if diff != "binary_ce":
        assert least.abs() < 1e-12


def test_limit_is_what_the_binary_divergence_tends_to():
    s, t, valid = torch.tensor([-3.0]).double(), torch.tensor([-2.0]).double(), torch.tensor([True])
    limit = alm_loss_from_logprobs(s, t, valid, diff="binary_kl_limit", eps=0.0)
    entropy = alm_loss_from_logprobs(t, t, valid, temperature=1e5, eps=0.0)
    kl = alm_loss_from_logprobs(s, t, valid, temperature=1e5, eps=0.0) - entropy
    torch.testing.assert_close(1e5 * kl, limit, rtol=1e-4, atol=0)
    assert limit.item() == pytest.approx((t - s + t * torch.log(s / t)).item())


def test_reverse_divergence_by_hand():
    value = alm_loss_from_logprobs(
        torch.tensor([math.log(0.25)]), torch.tensor([math.log(0.5)]), torch.tensor([True]),
        temperature=1.0, eps=0.0, diff="reverse_binary_kl",
    )  # fmt: skip
    assert value.item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), rel=1e-5)


def test_certain_chunks_stay_finite():
    s = torch.zeros(1, 2, requires_grad=True)
    for eps in (0.0, 1e-6):
        loss = alm_loss_from_logprobs(s, torch.tensor([[0.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool), eps=eps)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(s.grad).all()


def test_no_chunk_gives_zero_with_a_graph():
    student, teacher, ids_s, ids_t = draw()
    nothing = alm_loss(student, teacher, ids_s, ids_t, CHUNKS_S, CHUNKS_T, MASK_S, ~MASK_T)
    assert nothing.item() == 0
    nothing.backward()
    assert student.grad.abs().sum() == 0


def test_half_precision_is_computed_in_full():
    student, teacher, ids_s, ids_t = draw(dtype=torch.bfloat16)
    value = call(student, teacher, ids_s, ids_t, append_boundary=True, **BOTH)
    expected = call(student.double(), teacher.double(), ids_s, ids_t, append_boundary=True, **BOTH)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=0)
    value.backward()
    assert student.grad.dtype == torch.bfloat16


def test_teacher_gets_no_gradient():
    student, teacher, ids_s, ids_t = draw()
    teacher.requires_grad_()
    call(student, teacher, ids_s, ids_t, append_boundary=True, **BOTH).backward()
    assert teacher.grad is None


def test_boundary_may_be_shorter_than_a_padded_output_layer():
    student, teacher, ids_s, ids_t = draw()
    short = {**BOTH, "student_boundary": BOUNDARY_S[:5]}
    options = {"append_boundary": True}
    assert torch.equal(
        call(student, teacher, ids_s, ids_t, **short, **options),
        call(student, teacher, ids_s, ids_t, **BOTH, **options),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"append_boundary": True}, "append_boundary"),
        ({"merge_threshold": 0.1, "student_boundary": BOUNDARY_S}, "merge_threshold"),
        ({"append_boundary": True, **BOTH, "teacher_boundary": torch.zeros(V_T, dtype=torch.bool)}, "no token is"),
        ({"merge_threshold": 1.5, **BOTH}, r"\[0, 1\]"),
        ({"eps": -1.0}, "eps"),
        ({"diff": "kl"}, "unknown diff"),
        ({"append_boundary": True, **BOTH, "student_boundary": torch.ones(V_S + 1).bool()}, "larger vocabulary"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        call(*draw(), **options)


def test_chunks_that_do_not_fit_are_refused():
    student, teacher, ids_s, ids_t = draw()
    masks = (MASK_S, MASK_T)
    with pytest.raises(ShapeError, match="different numbers of chunks"):
        alm_loss(student, teacher, ids_s, ids_t, as_mask(CHUNKS_S, 4), as_mask(CHUNKS_T, 5), *masks)
    twice = as_mask(CHUNKS_S)
    twice[0, 1, :2] = True
    with pytest.raises(InputError, match="in two chunks"):
        alm_loss(student, teacher, ids_s, ids_t, twice, as_mask(CHUNKS_T), *masks)
    with pytest.raises(ShapeError, match="do not fit its tokens"):
        alm_loss(student, teacher, ids_s, ids_t, CHUNKS_T, CHUNKS_T, *masks)
    with pytest.raises(InputError, match="loss mask"):
        alm_loss(student, teacher, ids_s, ids_t, CHUNKS_S, CHUNKS_T, MASK_S.long(), MASK_T)


def test_ids_of_another_tokenizer_are_refused():
    student, teacher, ids_s, ids_t = draw()
    with pytest.raises(InputError, match="no class of its logits"):
        call(student, teacher, ids_s + V_S, ids_t)
