from importlib import import_module

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from potstill.errors import InputError
from potstill.evaluate import cost, weight_size


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 2, 5, 8))

    def forward(self, x):
        return F.scaled_dot_product_attention(self.query.expand(len(x), -1, -1, -1), x, x)


class Linear(nn.Linear):
    def forward(self, x):
        return super().forward(x)


def test_a_matrix_product_costs_two_operations_per_weight_and_row():
    measured = cost(Linear(6, 7, bias=False), {"x": torch.randn(10, 6), "labels": torch.zeros(10)}, repeats=2)
    assert measured["flops_per_sample"] == 2 * 6 * 7
    assert measured["parameters"] == 42
    assert measured["bytes"] == 42 * 4
    assert measured["ms_per_sample"] > 0
    assert measured["peak_memory_bytes"] is None


def test_attention_is_counted_although_its_fused_kernel_is_unknown_to_the_counter():
    measured = cost(Attention(), {"x": torch.randn(3, 2, 11, 8)}, repeats=1)
    assert measured["flops_per_sample"] == 2 * 2 * (2 * 5 * 11 * 8)  # two heads, two products


def test_half_precision_halves_the_bytes_but_not_the_parameters():
    model = nn.Linear(4, 4)
    parameters, num_bytes = weight_size(model)
    assert weight_size(model.half()) == (parameters, num_bytes // 2)


def test_tied_weights_and_unsaved_buffers_are_not_counted_twice_or_at_all():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    model[1].weight = model[0].weight
    model.register_buffer("saved", torch.zeros(3, dtype=torch.int64))
    model.register_buffer("scratch", torch.zeros(1000), persistent=False)
    assert weight_size(model) == (40, 40 * 4 + 3 * 8)


def test_bytes_are_those_of_the_saved_tensors(scenes, tmp_path):
    from safetensors.torch import load_file

    model = scenes.model()
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert weight_size(model)[1] == sum(t.numel() * t.element_size() for t in stored.values())


def test_measuring_coca_leaves_mode_gradients_and_batch_alone(scenes):
    model = scenes.model().train()
    model.lm_head.weight.requires_grad_(False)
    asked = [p.requires_grad for p in model.parameters()]
    batch = scenes.collator([scenes.data[i] for i in range(4)])
    measured = cost(model, batch, repeats=1)
    assert measured["flops_per_sample"] > 10_000
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == asked


def test_a_smaller_model_costs_fewer_operations(scenes):
    batch = scenes.collator([scenes.data[i] for i in range(4)])
    small, large = (cost(scenes.model(image_layers=n), batch, repeats=1) for n in (1, 3))
    assert small["flops_per_sample"] < large["flops_per_sample"]
    assert small["parameters"] < large["parameters"]


def test_a_batch_of_unclear_size_is_refused():
    class Two(Linear):
        def forward(self, x, y):
            return super().forward(x)

    with pytest.raises(InputError, match="number of rows"):
        cost(Two(2, 2), {"x": torch.ones(3, 2), "y": torch.ones(4)})
    with pytest.raises(InputError, match="repeats"):
        cost(Linear(2, 2), {"x": torch.ones(3, 2)}, repeats=0)


@pytest.mark.parametrize(("enough", "passes"), [(0.0, 1 + 1), (60.0, 1 + 2 + 10)])
def test_a_slow_model_is_timed_once(monkeypatch, enough, passes):
    class Counted(Linear):
        calls = 0

        def forward(self, x):
            Counted.calls += 1
            return super().forward(x)

    monkeypatch.setattr(import_module("potstill.evaluate.cost"), "ENOUGH", enough)  # the package has the function
    cost(Counted(2, 2), {"x": torch.ones(3, 2)})
    assert Counted.calls == passes
