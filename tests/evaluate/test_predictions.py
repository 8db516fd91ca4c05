"""Scores that a model computes but does not return are measured like any other."""

import pytest
import torch

from potstill.evaluate.predictions import outputs_of
from potstill.taps.inputs import model_inputs


def test_the_logits_of_a_model_that_does_not_return_them_are_those_its_loss_is_made_of(tiny):
    model, batch = tiny("blip-vqa")
    labels = torch.tensor([[1, 9, 8, 2], [1, 7, 2, -100]])
    given = {**batch, "labels": labels, "decoder_input_ids": labels.clamp_min(0)}
    with torch.no_grad():
        output = outputs_of(model, given)
    own = torch.nn.functional.cross_entropy(output["logits"][:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert own.item() == pytest.approx(output.loss.item(), rel=1e-6)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["blip-caption", "clip", "coca"])
def test_other_models_return_what_they_return(tiny, name):
    model, batch = tiny(name)
    with torch.no_grad():
        plain, wrapped = model(**model_inputs(model)(batch)), outputs_of(model, model_inputs(model)(batch))
    assert plain.keys() == wrapped.keys()
