import loss_references as ref
import pytest
import torch
import torch.nn.functional as F

from potstill.errors import InputError, ShapeError
from potstill.losses import attention_transfer


def maps(B, channels_s, channels_t, *size, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(B, c, *size, generator=draws, dtype=torch.float64) for c in (channels_s, channels_t)]


def test_hand_values_of_two_places():
    # Squares (9, 16) and (16, 9) over two places, normalised by sqrt(337).
    student, teacher = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[4.0, -3.0]]]])
    assert attention_transfer(student, teacher).item() == pytest.approx(49 / 337, abs=1e-6)
    assert attention_transfer(student, teacher, mode="l2").item() == pytest.approx((98 / 337) ** 0.5, abs=1e-6)


@pytest.mark.parametrize("p", [1, 2, 3.5])
@pytest.mark.parametrize("mode", ["mean_sq", "l2"])
def test_value_and_gradient_equal_the_plain_reading(p, mode):
    student, teacher = maps(3, 2, 5, 3, 4)

    def plain(s):
        gap = ref.attention_map(s, p) - ref.attention_map(teacher, p)
        return gap.square().mean() if mode == "mean_sq" else gap.norm(dim=1).mean()

    exact, exact_grad = ref.gradient(plain, student)
    for dtype, rtol in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        value, grad = ref.gradient(
            lambda s, dtype=dtype: attention_transfer(s, teacher.to(dtype), p=p, mode=mode), student.to(dtype)
        )
        torch.testing.assert_close(value.double(), exact, rtol=rtol, atol=0)
        torch.testing.assert_close(grad.double(), exact_grad, rtol=rtol, atol=rtol * exact_grad.abs().max().item())


def test_unequal_sizes_are_pooled_to_the_smaller_height_and_the_smaller_width():
    draws = torch.Generator().manual_seed(0)
    student = torch.randn(2, 3, 4, 9, generator=draws)
    teacher = torch.randn(2, 5, 8, 3, generator=draws)
    pooled = [F.adaptive_avg_pool2d(f, (4, 3)) for f in (student, teacher)]
    torch.testing.assert_close(attention_transfer(student, teacher), attention_transfer(*pooled))


def test_scale_and_order_of_channels_do_not_matter():
    student, teacher = maps(2, 4, 6, 3, 3)
    value = attention_transfer(student, teacher)
    for scale in (1e-6, 1e3):
        torch.testing.assert_close(attention_transfer(scale * student.flip(1), teacher / scale), value)
    torch.testing.assert_close(
        attention_transfer(1e-8 * student.float(), teacher.float()).double(), value, rtol=1e-5, atol=0
    )
    assert attention_transfer(2 * teacher[:, [3, 1, 0, 2, 5, 4]], teacher).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("mode", ["mean_sq", "l2"])
def test_silent_and_huge_maps_stay_finite(mode):
    _, teacher = maps(2, 4, 6, 3, 3)
    for student in (torch.zeros(2, 4, 3, 3), torch.full((2, 4, 3, 3), 1e4)):
        value, grad = ref.gradient(lambda s: attention_transfer(s, teacher.float(), mode=mode), student)
        assert torch.isfinite(value)
        assert torch.isfinite(grad).all()


def test_wrong_input_is_refused():
    student, teacher = maps(2, 4, 6, 3, 3)
    with pytest.raises(ShapeError, match=r"\(B, C_s, H, W\)"):
        attention_transfer(student[0], teacher[0])
    with pytest.raises(InputError, match='"mean_sq", "l2"'):
        attention_transfer(student, teacher, mode="mse")
    with pytest.raises(InputError, match="at least 1"):
        attention_transfer(student, teacher, p=0.5)
