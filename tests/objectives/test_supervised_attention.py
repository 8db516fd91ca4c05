import math

import pytest
import torch
from torch import nn

from potstill.errors import PotstillError, RecipeError
from potstill.models.coca import CocaModel
from potstill.models.coca_config import CocaConfig
from potstill.objectives import ReadoutObjective, Seen, SupervisedAttentionObjective
from potstill.taps import Signal, attention_probs
from potstill.train import DistillModule


def seen(query, key, labels):
    """Two heads of four channels."""
    query, key = (x.unflatten(-1, (2, 4)).transpose(1, 2) for x in (query, key))
    return Seen({"places": labels}, Signal({}, {"a@attention": attention_probs(query, key, 0.5)}))


def objective(**options):
    return SupervisedAttentionObjective("look", "a", "places", **{"grid": 4, **options})


def test_even_attention_costs_the_log_of_how_many_times_more_there_is():
    labels = torch.tensor([[1, 0, -100], [15, 3, 8]])
    found = objective().total(seen(torch.zeros(2, 3, 8), torch.randn(2, 16, 8), labels), None)
    assert found.item() == pytest.approx(2 * math.log(4) + math.log(2), rel=1e-6)
    assert objective().count({"places": labels}) == 4


def test_it_equals_the_softmax_written_out():
    torch.manual_seed(0)
    query, key, labels = torch.randn(2, 3, 8), torch.randn(2, 20, 8), torch.tensor([[5, -100, 2], [0, 12, 9]])
    expected = 0.0
    cell = [2 * (row // 2) + column // 2 for row in range(4) for column in range(4)]
    for n in range(2):
        for t in range(3):
            label = labels[n, t].item()
            if label <= 0:
                continue
            for head in range(2):
                part = slice(4 * head, 4 * head + 4)
                weights = ((key[n, :16, part] @ query[n, t, part]) / 2).softmax(0)  # keys after the grid do not count
                inside = sum(weights[s] for s in range(16) if label >> cell[s] & 1)
                expected -= inside.log() / 2
    assert objective(supervised=2).total(seen(query, key, labels), None) == pytest.approx(expected.item(), rel=1e-5)


def test_only_the_supervised_heads_get_a_gradient():
    query, key = torch.randn(1, 2, 8, requires_grad=True), torch.randn(1, 16, 8)
    objective(supervised=1).total(seen(query, key, torch.tensor([[1, 2]])), None).backward()
    assert query.grad[..., :4].abs().sum() > 0
    assert query.grad[..., 4:].abs().sum() == 0


def test_without_a_place_to_look_at_the_loss_is_zero_and_finite():
    query = torch.randn(1, 2, 8, requires_grad=True)
    total = objective().total(seen(query, torch.randn(1, 16, 8), torch.tensor([[0, -100]])), None)
    total.backward()
    assert total.item() == 0.0
    assert torch.isfinite(query.grad).all()


def test_the_grid_may_stand_behind_other_keys_and_labels_may_be_fewer_than_queries():
    torch.manual_seed(0)
    query, key, labels = torch.randn(2, 5, 8), torch.randn(2, 16, 8), torch.tensor([[5, -100, 2], [0, 12, 9]])
    expected = objective().total(seen(query, key, labels), None)
    for skip in (3, -16):
        longer = torch.cat([torch.randn(2, 3, 8), key], 1)
        found = objective(skip=skip).total(seen(query, longer, labels), None)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("options", "field"), [({"grid": 5}, "grid"), ({"supervised": 0}, "supervised")])
def test_options_that_do_not_fit_are_refused(options, field):
    with pytest.raises(RecipeError) as caught:
        objective(**options)
    assert caught.value.where == f"look.{field}"


def test_a_grid_larger_than_the_picture_and_heads_that_do_not_exist_are_refused():
    with pytest.raises(PotstillError, match="fewer keys"):
        objective().total(seen(torch.zeros(1, 1, 8), torch.zeros(1, 9, 8), torch.tensor([[1]])), None)
    with pytest.raises(PotstillError, match="no such heads"):
        objective(supervised=3).total(seen(torch.zeros(1, 1, 8), torch.zeros(1, 16, 8), torch.tensor([[1]])), None)


def test_a_coca_learns_to_look_where_it_is_told():
    torch.manual_seed(0)
    config = CocaConfig(
        image_size=32, patch_size=8, image_width=16, image_heads=2, image_layers=1, text_width=16, text_heads=2,
        text_layers=1, multimodal_layers=1, vocab_size=8, max_text_length=4, caption_queries=16, embed_dim=8,
        task_labels={},
    )  # fmt: skip
    look = SupervisedAttentionObjective(
        "look", "multimodal_decoder.blocks.0.cross_attn", "places", grid=4, supervised=2
    )
    batch = {
        "pixel_values": torch.randn(8, 3, 32, 32),
        "input_ids": torch.randint(8, (8, 4)),
        "places": torch.randint(1, 15, (8, 4)),
    }
    module = DistillModule(CocaModel(config), [look])
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = module(batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_a_readout_takes_one_label_for_each_token():
    torch.manual_seed(0)
    readout = ReadoutObjective("r", "block", "labels", classes=3)
    hidden, labels = torch.randn(2, 5, 4), torch.tensor([[0, 1, -100, 2, -100], [-100, -100, 1, 1, 0]])
    batch, signal = {"labels": labels}, Signal({}, {"block": hidden})
    part = readout.build_part(signal, None)
    expected = nn.functional.cross_entropy(part(hidden)[labels >= 0], labels[labels >= 0], reduction="sum")
    assert readout.total(Seen(batch, signal), part).item() == pytest.approx(expected.item(), rel=1e-5)
    assert readout.count(batch) == 6


def test_a_readout_leaves_out_the_tokens_that_the_model_puts_behind_those_of_the_batch():
    torch.manual_seed(0)
    readout = ReadoutObjective("r", "block", "labels", classes=3)
    hidden, labels = torch.randn(2, 9, 4), torch.tensor([[0, 1, -100, 2, -100], [-100, -100, 1, 1, 0]])
    part = readout.build_part(Signal({}, {"block": hidden}), None)
    batch = {"labels": labels}
    found = readout.total(Seen(batch, Signal({}, {"block": hidden})), part)
    assert torch.equal(found, readout.total(Seen(batch, Signal({}, {"block": hidden[:, :5]})), part))
