import pytest
import torch
from torch import nn

from picture_models import batch, vit
from potstill.errors import RecipeError, ShapeError
from potstill.objectives import MaskedImageObjective
from potstill.train import DistillModule


def built(student=None, **options):
    objective = MaskedImageObjective("patches", "vit.layernorm", **options)
    student = student or vit()
    objective.meet(student, {})
    module = DistillModule(student, [objective])
    module.build_parts(batch(), None)
    return module.train(), objective


def test_hidden_patches_are_grey_drawn_anew_and_only_inside():
    student, objective = vit().eval(), MaskedImageObjective("patches", "vit.layernorm", mask_ratio=0.25)
    objective.meet(student, {})
    seen, x = [], batch()["pixel_values"]
    patches = student.vit.embeddings.register_forward_pre_hook(lambda module, args, kwargs: seen.append(
        args[0] if args else kwargs["pixel_values"]), with_kwargs=True)  # fmt: skip
    torch.manual_seed(0)
    with objective.around(student) as hidden:
        student(pixel_values=x)
        first = hidden.mask
        student(pixel_values=x)
    student(pixel_values=x)
    patches.remove()
    assert first.sum(1).tolist() == [4, 4, 4, 4]
    assert not torch.equal(first, hidden.mask)
    covered = first.view(4, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(seen[0], x.masked_fill(covered, 0))
    assert torch.equal(seen[2], x)


def test_the_value_is_the_mean_difference_over_hidden_pixels():
    module, objective = built()
    torch.manual_seed(3)
    total = module(batch()).totals["patches"]
    torch.manual_seed(3)
    seen = module.observe(batch())
    mask, x = seen.notes[objective.around].mask, batch()["pixel_values"]
    filled = module.part_of(objective)(seen.tapped["vit.layernorm"][:, 1:])
    values = []
    for n in range(4):
        rows = []
        for place in mask[n].nonzero().flatten().tolist():
            top, left = 2 * (place // 4), 2 * (place % 4)
            rows.append((filled[n, place] - x[n, :, top : top + 2, left : left + 2].flatten()).abs().mean())
        values.append(sum(rows) / len(rows))
    torch.testing.assert_close(total, sum(values).detach())


def test_it_trains_the_student_by_what_it_does_not_see():
    module, _ = built()
    even = torch.linspace(-1, 1, 4).view(4, 1, 1, 1).expand(4, 3, 8, 8)  # what is hidden can be told from what is not
    rows = {**batch(), "pixel_values": even.clone()}
    rate = torch.optim.Adam(module.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = module(rows).loss
        rate.zero_grad()
        loss.backward()
        rate.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_what_does_not_fit_is_refused():
    with pytest.raises(RecipeError, match="mask_ratio"):
        MaskedImageObjective("patches", "tap", mask_ratio=1.0)
    with pytest.raises(RecipeError, match="patch"):
        MaskedImageObjective("patches", "tap", patch=0)
    with pytest.raises(RecipeError, match="how large its patches are"):
        MaskedImageObjective("patches", "tap").meet(nn.Linear(2, 2), {})
    module, _ = built(own_tokens=0)
    with pytest.raises(ShapeError, match="16 behind 0"):
        module(batch())
