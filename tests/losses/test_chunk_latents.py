import pytest
import torch

from potstill.errors import InputError, ShapeError
from potstill.losses import alm_latents_loss

CHUNKS_S = torch.tensor([[-1, 0, 0, 1, 2], [0, 1, 1, -1, -1]])
CHUNKS_T = torch.tensor([[0, 1, 1, 2], [0, 0, 1, 2]])
MASK_S, MASK_T = torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool)
ENDS = ([(0, 2), (0, 3), (0, 4), (1, 0), (1, 2)], [(0, 0), (0, 2), (0, 3), (1, 1), (1, 2)])


def draw(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    pair = [torch.randn(2, n, 3, generator=g, dtype=torch.float64).to(dtype) for n in (5, 4)]
    return pair[0].requires_grad_(), pair[1]


def test_value_and_gradient_are_those_of_the_plain_form():
    student, teacher = draw()
    value = alm_latents_loss(student, teacher, CHUNKS_S, CHUNKS_T, MASK_S, MASK_T)
    s, t = (torch.stack([x[at] for at in ends]) for x, ends in zip((student, teacher), ENDS))
    expected = ((s - t) ** 2 / (t.square().mean(0) + 1e-8)).mean()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, student), torch.autograd.grad(expected, student))


def test_only_tokens_that_count_end_a_chunk():
    student, teacher = draw()
    mask = MASK_S.clone()
    mask[0, 2] = False  # chunk 0 of row 0 now ends a token earlier
    value = alm_latents_loss(student, teacher, CHUNKS_S, CHUNKS_T, mask, MASK_T)
    ends = [(0, 1), *ENDS[0][1:]]
    s, t = (torch.stack([x[at] for at in e]) for x, e in zip((student, teacher), (ends, ENDS[1])))
    torch.testing.assert_close(value, ((s - t) ** 2 / (t.square().mean(0) + 1e-8)).mean())


def test_nothing_to_compare_gives_zero_with_a_graph():
    student, teacher = draw()
    loss = alm_latents_loss(student, teacher, CHUNKS_S, CHUNKS_T, ~MASK_S, MASK_T)
    loss.backward()
    assert loss.item() == student.grad.abs().sum().item() == 0


def test_half_precision_is_computed_in_full():
    student, teacher = draw(torch.bfloat16)
    value = alm_latents_loss(student, teacher, CHUNKS_S, CHUNKS_T, MASK_S, MASK_T)
    exact = alm_latents_loss(student.double(), teacher.double(), CHUNKS_S, CHUNKS_T, MASK_S, MASK_T)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=0)


def test_other_widths_are_refused():
    student, teacher = draw()
    with pytest.raises(ShapeError, match="one width"):
        alm_latents_loss(student, teacher[..., :2], CHUNKS_S, CHUNKS_T, MASK_S, MASK_T)
    with pytest.raises(InputError, match="loss mask"):
        alm_latents_loss(student, teacher, CHUNKS_S, CHUNKS_T, MASK_S.long(), MASK_T)
