import pytest
import torch

from picture_models import batch, vit
from potstill.errors import RecipeError, ShapeError
from potstill.losses import instance_alignment
from potstill.objectives import TwoViewsObjective
from potstill.train import DistillModule


def built(student=None, **options):
    objective = TwoViewsObjective("views", "vit.layernorm", width=8, **options)
    module = DistillModule(student or vit(), [objective])
    module.build_parts(two_views(), None)
    return module.train(), objective


def two_views(n=4, start=0):
    """All first views, then all second views, a quarter of their patches grey, other ones in each view."""
    rows = batch(n, start=start)
    seen = torch.rand(2 * n, 1, 4, 4, generator=torch.Generator().manual_seed(start)) > 0.25
    seen = seen.repeat_interleave(2, 2).repeat_interleave(2, 3)
    rows["pixel_values"] = rows["pixel_values"].repeat(2, 1, 1, 1) * seen
    return {**rows, "labels": rows["labels"].repeat(2), "sample_id": rows["sample_id"].repeat(2)}


@pytest.mark.parametrize("token", [0, 3, None])
def test_the_value_is_the_loss_of_the_projected_features_of_the_first_and_the_second_half(token):
    module, objective = built(token=token, temperature=0.3)
    seen = module.observe(two_views())
    tokens = seen.tapped["vit.layernorm"]
    features = module.part_of(objective)(tokens.mean(1) if token is None else tokens[:, token])
    value = instance_alignment(features[:4], features[4:], temperature=0.3)
    torch.testing.assert_close(module(two_views()).totals["views"], 4 * value.detach())
    assert objective.count(two_views()) == 4


def test_the_views_of_new_samples_find_each_other_after_training():
    module, _ = built()

    @torch.no_grad()
    def found():
        tokens = module.student.vit(two_views(32, start=1000)["pixel_values"]).last_hidden_state[:, 0]
        first, second = torch.nn.functional.normalize(tokens - tokens.mean(0), dim=1).chunk(2)
        return ((first @ second.T).argmax(1) == torch.arange(32)).float().mean().item()

    before, rate = found(), torch.optim.Adam(module.parameters(), 3e-3)
    start = module(two_views(16)).loss.item()
    for step in range(100):
        loss = module(two_views(16, start=16 * step)).loss
        rate.zero_grad()
        loss.backward()
        rate.step()
    assert loss.item() < 0.75 * start
    assert found() > before + 0.15


def test_one_sample_has_nothing_to_be_told_from():
    module, _ = built()
    loss = module(two_views(1)).loss
    loss.backward()
    assert loss.item() == 0
    assert all(torch.isfinite(p.grad).all() for p in module.student.parameters() if p.grad is not None)


def test_what_does_not_fit_is_refused():
    for options, field in (({"token": -1}, "token"), ({"width": 0}, "width"), ({"temperature": 0}, "temperature")):
        with pytest.raises(RecipeError, match=field):
            TwoViewsObjective("views", "tap", **options)
    module, _ = built()
    with pytest.raises(ShapeError, match="not of two views"):
        module(batch(3))
    module, objective = built()
    objective.token = 99
    with pytest.raises(ShapeError, match="with this token"):
        module(two_views())
