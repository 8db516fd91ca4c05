import loss_references as ref
import pytest
import torch

from potstill.errors import InputError, ShapeError
from potstill.losses import minilm_relation


def pair(B, L, d_s, d_t, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(B, L, d, generator=draws, dtype=torch.float64) for d in (d_s, d_t)]


def test_hand_value_of_two_tokens():
    # One head of width 1, tokens 1 and 0: scores (1, 0) and (0, 0). The teacher is even in both rows.
    student, teacher = torch.tensor([[[1.0], [0.0]]]), torch.zeros(1, 2, 1)
    q = torch.sigmoid(torch.tensor(1.0))
    row = -0.5 * (q.log() + (1 - q).log()) - torch.tensor(2.0).log()
    assert minilm_relation(student, teacher, 1).item() == pytest.approx(row.item() / 2, abs=1e-6)


@pytest.mark.parametrize("R", [1, 2, 6])
@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradient_equal_the_plain_reading(R, masked):
    student, teacher = pair(3, 5, 6, 12)
    mask = torch.arange(5).expand(3, 5) < torch.tensor([[5], [2], [3]]) if masked else None
    exact, exact_grad = ref.gradient(lambda s: ref.relation_kl(s, teacher, R, mask), student)
    for dtype, rtol in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
        value, grad = ref.gradient(
            lambda s, dtype=dtype: minilm_relation(s, teacher.to(dtype), R, mask=mask), student.to(dtype)
        )
        torch.testing.assert_close(value.double(), exact, rtol=rtol, atol=0)
        torch.testing.assert_close(grad.double(), exact_grad, rtol=rtol, atol=rtol * exact_grad.abs().max().item())


def test_turning_student_features_inside_a_head_changes_nothing():
    student, teacher = pair(2, 4, 6, 8)
    turns = [torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q for _ in range(2)]
    turned = student @ torch.block_diag(*turns)
    torch.testing.assert_close(minilm_relation(turned, teacher, 2), minilm_relation(student, teacher, 2))
    across = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    assert not torch.isclose(minilm_relation(student @ across, teacher, 2), minilm_relation(student, teacher, 2))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_a_sequence_changes_nothing(side):
    student, teacher = pair(2, 4, 6, 8)
    pad = (0, 0, 3, 0) if side == "left" else (0, 0, 0, 3)
    padded = [torch.nn.functional.pad(x, pad, value=torch.nan) for x in (student, teacher)]
    mask = torch.nn.functional.pad(torch.ones(2, 4, dtype=torch.bool), pad[2:])
    torch.testing.assert_close(minilm_relation(*padded, 2, mask), minilm_relation(student, teacher, 2))


def test_a_short_sequence_weighs_as_much_as_a_long_one():
    student, teacher = pair(2, 5, 6, 8)
    mask = torch.arange(5).expand(2, 5) < torch.tensor([[5], [2]])
    alone = [minilm_relation(student[:1], teacher[:1], 2), minilm_relation(student[1:, :2], teacher[1:, :2], 2)]
    torch.testing.assert_close(minilm_relation(student, teacher, 2, mask), sum(alone) / 2)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_a_sample_without_any_token_does_not_count_and_makes_no_nan_on_the_way():
    student, teacher = pair(3, 5, 6, 8)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1] = False
    student.requires_grad_()
    with torch.autograd.detect_anomaly(check_nan=True):
        value = minilm_relation(student, teacher, 2, mask)
        value.backward()
    torch.testing.assert_close(value, minilm_relation(student[[0, 2]], teacher[[0, 2]], 2))
    assert (student.grad[1] == 0).all()


def test_huge_features_keep_value_and_gradient_finite():
    student, teacher = (1e3 * x.float() for x in pair(2, 5, 6, 6))
    value, grad = ref.gradient(lambda s: minilm_relation(s, teacher, 3), student)
    assert torch.isfinite(value)
    assert torch.isfinite(grad).all()


def test_a_single_token_has_no_relation():
    student, teacher = pair(2, 1, 6, 8)
    assert minilm_relation(student, teacher, 2) == 0


@pytest.mark.parametrize("R", [0, 3, 4, -2])
def test_a_head_count_that_does_not_divide_both_widths_is_refused(R):
    student, teacher = pair(2, 4, 6, 8)
    with pytest.raises(InputError, match=r"divisor of 6 \(student\) and of 8 \(teacher\)"):
        minilm_relation(student, teacher, R=R)


def test_other_shapes_are_refused():
    student, teacher = pair(2, 4, 6, 8)
    with pytest.raises(ShapeError, match=r"\(B, L, d_s\)"):
        minilm_relation(student, teacher[:, :3], 2)
    with pytest.raises(ShapeError, match=r"\(B, L, d_s\)"):
        minilm_relation(student[0], teacher[0], 2)
