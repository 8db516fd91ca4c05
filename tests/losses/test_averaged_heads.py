import pytest
import torch

from potstill.errors import InputError
from potstill.losses import attention_kl, head_mean


def maps(*shape, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*shape, generator=draws, dtype=torch.float64)).softmax(-1)


def test_it_is_attention_kl_of_the_mean_maps():
    student, teacher = maps(2, 3, 4, 5), maps(2, 8, 4, 5, seed=1)
    query_mask = torch.tensor([[True, True, False, True], [True, True, False, True]])
    means = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    torch.testing.assert_close(
        head_mean(student, teacher, query_mask=query_mask), attention_kl(*means, mask=query_mask)
    )


def test_heads_that_differ_but_have_the_same_mean_cost_nothing():
    teacher = maps(2, 8, 4, 5)
    assert head_mean(teacher.mean(1, keepdim=True).expand(2, 3, 4, 5), teacher).abs() < 1e-12


def test_scores_instead_of_probabilities_are_refused_under_its_own_name():
    student, teacher = maps(2, 3, 4, 5), maps(2, 8, 4, 5)
    with pytest.raises(InputError, match=r"^head_mean: teacher has negative entries"):
        head_mean(student, teacher.log())
