import io

import pytest
import torch
from rich.console import Console
from torch import nn

from potstill.errors import InputError
from potstill.models.pairing import resolve_modules
from potstill.students import build_depth_student, build_width_student
from potstill.taps.inspect import describe_model, propose, render


def text_of(subject, **options):
    console = Console(file=io.StringIO(), width=200)
    console.print(render(subject, **options))
    return console.file.getvalue()


class Towers(nn.Module):
    def __init__(self, n=3, width=4):
        super().__init__()
        self.stages = nn.Sequential(*(nn.Sequential(nn.Conv2d(width, width, 1)) for _ in range(n)))
        self.shared = self.stages[0][0]

    def forward(self, x):
        return {"features": self.stages(x)}


def test_every_path_is_listed_with_its_parameters(tiny):
    model, _ = tiny("clip")
    description = describe_model(model)
    assert [layer.path for layer in description.layers] == [path for path, _ in model.named_modules()]
    assert sum(layer.own for layer in description.layers) == description.parameters == description.layers[0].total
    by_path = {layer.path: layer for layer in description.layers}
    projection = by_path["visual_projection"]
    assert (projection.class_name, projection.own, projection.output) == ("Linear", 128, None)


@pytest.mark.parametrize("name", ["coca", "clip", "siglip", "blip-vqa", "vit-gpt2", "t5", "bert-mlm", "vit", "llama"])
def test_stacks_of_a_known_family_tell_depth_width_heads_and_shape(tiny, name):
    model, batch = tiny(name)
    description = describe_model(model, batch)
    assert description.family
    for stack in description.stacks:
        assert (stack.depth, stack.width, stack.heads) == (4, 16, 2)
        assert stack.output[0] == 2
        assert stack.output[-1] == 16
        assert stack.parameters == sum(p.numel() for p in model.get_submodule(stack.blocks).parameters())


def test_an_unknown_model_is_described_by_its_lists_of_blocks():
    description = describe_model(Towers(), {"x": torch.zeros(2, 4, 5, 5)})
    (stack,) = description.stacks
    assert (stack.name, stack.depth, stack.width, stack.heads) == ("stages", 3, 4, None)
    assert stack.output == (2, 4, 5, 5)
    assert description.family is None
    assert description.parameters == 3 * 20


def test_looking_leaves_mode_hooks_and_weights_alone(tiny):
    model, batch = tiny("vit")
    model.vit.layers[1].train()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        describe_model(model, batch)
        assert [module.training for module in model.modules()] == modes
    finally:
        model.eval()
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_batch_that_does_not_run_is_refused_and_leaves_no_hook(tiny):
    model, _ = tiny("vit")
    with pytest.raises(InputError, match=r"cannot run the example batch.*got keys pixels\. Give the keyword"):
        describe_model(model, {"pixels": torch.zeros(1)})
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["coca", "clip", "t5", "vit-gpt2"])
def test_a_proposal_is_what_the_recipe_would_resolve(tiny, name):
    teacher, _ = tiny(name)
    student, _ = build_depth_student(teacher, 2)
    proposal = propose(student, teacher)
    assert proposal.unmatched == []
    assert all(m.pairs == [(0, 1), (1, 3)] and m.projector is None for m in proposal.modules)
    assert resolve_modules(student, teacher, proposal.as_recipe()) == resolve_modules(student, teacher)


def test_projectors_are_proposed_where_widths_differ(tiny):
    teacher, _ = tiny("clip")
    student, _ = build_width_student(teacher, {"image_encoder": 8})
    image, text = propose(student, teacher).modules
    assert (image.projector, text.projector) == ("linear", None)
    assert (image.student.width, image.teacher.width) == (8, 16)


def test_unknown_models_are_paired_by_path_and_batches_tell_the_width():
    student, teacher = Towers(2, 4), Towers(4, 6)
    (module,) = propose(student, teacher).modules
    assert module.projector == "unknown"
    batches = {"x": torch.zeros(1, 4, 3, 3)}, {"x": torch.zeros(1, 6, 3, 3)}
    proposal = propose(student, teacher, *batches)
    assert proposal.modules[0].projector == "conv1x1"
    (resolved,) = resolve_modules(student, teacher, proposal.as_recipe())
    assert resolved.pairs == [("stages.0", "stages.1"), ("stages.1", "stages.3")]


def test_what_cannot_be_paired_is_named_with_the_reason(tiny):
    clip, vit, bert = (tiny(name)[0] for name in ("clip", "vit", "bert"))
    assert propose(vit, clip).unmatched == ["text_encoder of the teacher has no partner in the student"]
    both = propose(vit, bert)
    assert both.modules == []
    assert len(both.unmatched) == 2
    shallow, _ = build_depth_student(vit, 2)
    (reason,) = propose(vit, shallow).unmatched
    assert reason.startswith("image_encoder: the student has 4 layers, more than the 2")
    assert "No modules can be paired." in text_of(both)
    assert "Not paired: image_encoder of the student has no partner" in text_of(both)


def test_descriptions_and_proposals_are_rendered_as_text(tiny):
    teacher, batch = tiny("coca")
    shown = text_of(describe_model(teacher, batch), max_depth=2)
    assert "family coca" in shown
    assert "image_encoder.blocks" in shown
    assert "2 × 5 × 16" in shown
    assert "image_encoder.blocks.0" not in shown
    assert "image_encoder.blocks.0.mlp.fc1" in text_of(describe_model(teacher))
    student, _ = build_width_student(teacher, 8, layers=2)
    shown = text_of(propose(student, teacher))
    assert "0 ← 1, 1 ← 3" in shown
    assert "8 → 16" in shown
    assert "linear" in shown
    assert "No stack of blocks was found." in text_of(describe_model(nn.Linear(1, 1)))
