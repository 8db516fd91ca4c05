import pytest
import torch

from potstill.errors import InputError, ShapeError
from potstill.losses import amad_loss, attention_kl, one_to_one_heads


def maps(*shape, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*shape, generator=draws, dtype=torch.float64)).softmax(-1)


def test_equal_numbers_of_heads_give_attention_kl_summed_over_heads():
    student, teacher = maps(2, 3, 4, 5), maps(2, 3, 4, 5, seed=1)
    torch.testing.assert_close(one_to_one_heads(student, teacher), 3 * attention_kl(student, teacher))
    torch.testing.assert_close(
        one_to_one_heads(student, teacher, head_reduction="mean"), attention_kl(student, teacher)
    )


@pytest.mark.parametrize(("choice", "kept"), [("first", [0, 1, 2]), ("spread", [0, 2, 5])])
def test_the_heads_of_the_choice_are_kept_also_where_the_numbers_do_not_divide(choice, kept):
    student, teacher = maps(2, 3, 4, 5), maps(2, 8, 4, 5, seed=1)
    torch.testing.assert_close(
        one_to_one_heads(student, teacher, choice=choice), one_to_one_heads(student, teacher[:, kept])
    )


def test_the_order_of_the_teachers_heads_changes_it_as_it_does_not_change_amad():
    student, teacher = maps(2, 2, 4, 5), maps(2, 8, 4, 5, seed=1)
    turned = teacher.flip(1)
    assert abs(one_to_one_heads(student, turned) - one_to_one_heads(student, teacher)) > 0.01
    torch.testing.assert_close(amad_loss(student, turned), amad_loss(student, teacher))


def test_key_masks_make_rows_whole_again():
    student, teacher = maps(2, 2, 3, 5), maps(2, 4, 3, 5, seed=1)
    key_mask = torch.arange(5).expand(2, 5) < 3
    cut = [x[..., :3] / x[..., :3].sum(-1, keepdim=True) for x in (student, teacher)]
    torch.testing.assert_close(one_to_one_heads(student, teacher, key_mask=key_mask), one_to_one_heads(*cut))


def test_a_teacher_with_too_few_heads_and_an_unknown_choice_are_refused():
    student, teacher = maps(2, 3, 4, 5), maps(2, 2, 4, 5)
    with pytest.raises(ShapeError, match=r"fewer heads than the student; expected at least 3; got 2.*amad_loss"):
        one_to_one_heads(student, teacher)
    with pytest.raises(InputError, match='unknown choice; expected "first", "spread"'):
        one_to_one_heads(student, student, choice="last")
