import loss_references as ref
import pytest
import torch

from potstill.errors import InputError, ShapeError
from potstill.losses import attention_kl


def maps(*shape, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return [(2 * torch.randn(*shape, generator=draws, dtype=torch.float64)).softmax(-1) for _ in range(2)]


def test_hand_value_of_three_to_one_against_even():
    teacher, student = torch.tensor([[[[0.75, 0.25]]]]), torch.tensor([[[[0.5, 0.5]]]])
    assert attention_kl(student, teacher).item() == pytest.approx(0.130812, abs=5e-7)


@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradient_equal_the_plain_reading(masked):
    student, teacher = maps(2, 3, 4, 5)
    mask = torch.tensor([[True, True, False, True], [True, False, False, False]]) if masked else None

    def plain(s):
        values = [
            ref.kl(teacher[b, h, i], s[b, h, i])
            for b in range(2)
            for h in range(3)
            for i in range(4)
            if mask is None or mask[b, i]
        ]
        return sum(values) / len(values)

    exact, exact_grad = ref.gradient(plain, student)
    value, grad = ref.gradient(lambda s: attention_kl(s, teacher, mask=mask), student)
    torch.testing.assert_close(value, exact)
    torch.testing.assert_close(grad, exact_grad)


def test_a_query_mask_stands_for_all_heads():
    student, teacher = maps(2, 3, 4, 4)
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    full = mask[:, None].expand(2, 3, 4)
    torch.testing.assert_close(attention_kl(student, teacher, mask=mask), attention_kl(student, teacher, mask=full))


def test_padding_a_sequence_changes_nothing():
    student, teacher = maps(2, 3, 4, 4)
    padded = []
    for x in (student, teacher):
        wide = torch.zeros(2, 3, 6, 6, dtype=torch.float64)
        wide[:, :, :4, :4], wide[:, :, 4:] = x, torch.nan
        padded.append(wide)
    mask = torch.arange(6).expand(2, 6) < 4
    torch.testing.assert_close(attention_kl(*padded, mask=mask), attention_kl(student, teacher))


def test_causal_zeros_and_underflow_stay_finite():
    scores = torch.randn(1, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    hidden = torch.ones(5, 5).triu(1).bool()
    teacher = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    student_scores = (200 * scores.flip(1)).masked_fill(hidden, -torch.inf).requires_grad_()
    value = attention_kl(student_scores.softmax(-1), teacher)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student_scores.grad).all()


def test_wrong_input_is_refused():
    student, teacher = maps(2, 3, 4, 4)
    with pytest.raises(ShapeError, match=r"heads.*minilm_relation"):
        attention_kl(student[:, :2], teacher)
    with pytest.raises(ShapeError, match=r"\(B, H, Q, K\)"):
        attention_kl(student[0], teacher[0])
    with pytest.raises(InputError, match=r"student has negative entries.*softmax"):
        attention_kl(student.log(), teacher)
