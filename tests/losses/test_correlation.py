import loss_references as ref
import pytest
import torch

from potstill.errors import InputError, ShapeError
from potstill.losses import dist_loss


def pair(*shape, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=draws, dtype=torch.float64) for _ in range(2)]


def test_hand_value_of_reversed_rows():
    # Rows (a, b) and (b, a): every row and every column correlates by -1, so both parts are 2.
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert dist_loss(logits.flip(1), logits).item() == pytest.approx(4, abs=1e-6)
    assert dist_loss(logits.flip(1), logits, beta=3, gamma=0.5, temperature=2).item() == pytest.approx(28, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 4.0])
@pytest.mark.parametrize("shape", [(2, 3), (9, 4), (3, 5, 7)])
@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradient_equal_the_plain_reading(temperature, shape, masked):
    student, teacher = pair(*shape)
    # At T = 0.05 a class no row considers has no variance; keep the odds moderate.
    student, teacher = (x * min(1, temperature) for x in (student, teacher))
    mask = torch.arange(student[..., 0].numel()).reshape(shape[:-1]) % 4 != 3 if masked else None
    exact, exact_grad = ref.gradient(lambda s: ref.dist(s, teacher, temperature, mask, 2.0, 0.5), student)
    for dtype, rtol in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
        value, grad = ref.gradient(
            lambda s, dtype=dtype: dist_loss(
                s, teacher.to(dtype), beta=2, gamma=0.5, temperature=temperature, mask=mask
            ),
            student.to(dtype),
        )
        torch.testing.assert_close(value.double(), exact, rtol=rtol, atol=rtol * 0.1)
        torch.testing.assert_close(grad.double(), exact_grad, rtol=rtol, atol=rtol * exact_grad.abs().max().item())


def test_every_pixel_of_a_dense_map_is_a_row():
    student, teacher = pair(2, 5, 3, 4)
    rows = [x.permute(0, 2, 3, 1).reshape(-1, 5) for x in (student, teacher)]
    torch.testing.assert_close(dist_loss(student, teacher), dist_loss(*rows))
    mask = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(2)) < 0.6
    torch.testing.assert_close(
        dist_loss(student, teacher, mask=mask), dist_loss(*(row[mask.flatten()] for row in rows))
    )


def test_a_masked_row_is_dropped_before_the_columns_are_centred():
    student, teacher = pair(5, 4)
    mask = torch.tensor([True, True, False, True, True])
    zeroed = [x * mask.unsqueeze(1) for x in (student, teacher)]
    assert not torch.isclose(dist_loss(student, teacher, mask=mask), dist_loss(*zeroed))
    torch.testing.assert_close(dist_loss(student, teacher, mask=mask), dist_loss(student[mask], teacher[mask]))


def test_a_constant_added_to_a_row_changes_nothing():
    student, teacher = pair(6, 4)
    torch.testing.assert_close(dist_loss(student + 3, teacher), dist_loss(student, teacher))
    assert dist_loss(teacher - 2, teacher).item() < 1e-6
    assert dist_loss((teacher - 2).float(), teacher.float()).item() < 1e-6


def test_a_single_row_leaves_the_columns_without_correlation():
    _, teacher = pair(1, 4)
    value, grad = ref.gradient(lambda s: dist_loss(s, teacher), teacher)
    assert value.item() == pytest.approx(1, abs=1e-6)
    assert torch.isfinite(grad).all()


def test_saturated_rows_keep_the_gradient_finite():
    student, teacher = torch.zeros(4, 3), 1e4 * torch.eye(4, 3)
    for s in (student, teacher, -teacher):
        value, grad = ref.gradient(lambda x: dist_loss(x, teacher), s)
        assert torch.isfinite(value)
        assert torch.isfinite(grad).all()


def test_wrong_input_is_refused():
    student, teacher = pair(3, 4)
    with pytest.raises(ShapeError, match="no batch axis"):
        dist_loss(student[0], teacher[0])
    with pytest.raises(ShapeError, match="student has 4 classes, teacher 3"):
        dist_loss(student, teacher[:, :3])
    with pytest.raises(ShapeError, match="student has 2 classes, teacher 3"):
        dist_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4))
    with pytest.raises(InputError, match="temperature"):
        dist_loss(student, teacher, temperature=0)
    torch.testing.assert_close(
        dist_loss(student, teacher[:, :3], shared_vocab=3), dist_loss(student[:, :3], teacher[:, :3])
    )
