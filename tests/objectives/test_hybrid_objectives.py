import pytest
import torch
from torch import nn

from picture_models import batch, vit
from potstill.errors import InputError, RecipeError, ShapeError
from potstill.losses import token_relation_loss, whitened_feature_loss
from potstill.objectives import HybridFeatureObjective, HybridRelationObjective, TokenMasking
from potstill.objectives.token_masking import usual_stages
from potstill.taps import Taps, observe
from potstill.teachers import LiveTeacher
from potstill.train import DistillModule


def find_layers():
    """Where this version of transformers keeps the layers of a ViT."""
    from potstill.objectives.hybrid_distill import find_blocks

    return find_blocks(vit(), "student", "blocks")


def built(objectives, student=None, **teachers):
    student = student or vit()
    for objective in objectives:
        objective.meet(student, teachers)
    module = DistillModule(student, objectives)
    live = {
        name: LiveTeacher(model, outputs=module.outputs_of(name), taps=module.taps_of(name))
        for name, model in teachers.items()
    }
    signals = {name: one.signal(batch()) for name, one in live.items()}
    module.build_parts(batch(), signals)
    return module.train(), live, signals


def feature(of="teacher", **options):
    objective = HybridFeatureObjective("feature", **options)
    objective.of = (of,)
    return objective


def relation(of="teacher", **options):
    objective = HybridRelationObjective("relation", **options)
    objective.of = (of,)
    return objective


def hidden(model, x, paths):
    """What some modules return, all tokens kept."""
    taps = Taps(model, paths)
    with torch.no_grad():
        seen = observe(model.eval(), {"pixel_values": x}, taps, [], paths).tapped
    taps.remove()
    return [seen[path] for path in paths]


def test_the_usual_stages_are_thirds_of_depth_and_of_the_mask_ratio():
    layers, ratios = usual_stages(12, 0.3)
    assert layers == (0, 4, 8)
    assert ratios == pytest.approx((0.9, 0.8, 0.7))
    assert usual_stages(2, 0.3)[0] == (0, 1)
    assert usual_stages(1, 0.3) == ((0,), (0.7,))
    with pytest.raises(RecipeError, match="mask_ratio"):
        usual_stages(3, 1.0)


def test_tokens_dropped_in_training_never_return_and_the_student_is_left_as_it_was():
    student, x = vit(), batch()["pixel_values"]
    masking = TokenMasking(find_layers(), (0, 1, 2), (0.75, 0.5, 0.25), protected=1)
    seen = []
    last = student.get_submodule(find_layers())[-1]
    watch = last.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    with masking(student.train()) as kept:
        student(pixel_values=x)
    assert kept.places == 17
    assert [ids.shape for _, ids in kept.stages] == [(4, 13), (4, 9), (4, 5)]
    assert seen == [(4, 5, 16)]
    for (_, before), (_, after) in zip(kept.stages, kept.stages[1:]):
        assert all(set(b.tolist()) <= set(a.tolist()) for a, b in zip(before, after))
    assert (kept.at()[:, 0] == 0).all()
    assert torch.equal(kept.at(1), kept.stages[1][1])
    student(pixel_values=x)
    assert seen[-1] == (4, 17, 16)
    watch.remove()
    assert not any(block._forward_pre_hooks for block in student.get_submodule(find_layers()))


def test_the_first_choice_is_made_on_what_enters_the_layer():
    from potstill.losses import redundant_token_mask

    student, x = vit(), batch()["pixel_values"]
    (entering,) = hidden(student, x, [f"{find_layers()}.0@input"])
    with TokenMasking(find_layers(), (0,), (0.5,), 1)(student.train()) as kept:
        student(pixel_values=x)
    assert torch.equal(kept.at(), redundant_token_mask(entering, 9, 1)[1])


def test_in_evaluation_every_token_stays():
    student = vit().eval()
    with TokenMasking(find_layers(), (0,), (0.5,))(student) as kept:
        inside = student(pixel_values=batch()["pixel_values"]).logits
    assert kept.stages == []
    torch.testing.assert_close(inside, student(pixel_values=batch()["pixel_values"]).logits)


def test_a_ratio_of_one_changes_nothing():
    student, x = vit().train(), batch()["pixel_values"]
    with TokenMasking(find_layers(), (0, 1), (1.0, 1.0))(student) as kept:
        inside = student(pixel_values=x).logits
    assert torch.equal(inside, student(pixel_values=x).logits)
    assert kept.at().tolist() == [list(range(17))] * 4


def test_maskings_that_differ_and_layers_run_twice_are_refused():
    student, blocks = vit().train(), find_layers()
    with (
        pytest.raises(InputError, match="in different ways"),
        TokenMasking(blocks, (0,), (0.5,))(student),
        TokenMasking(blocks, (0,), (0.4,))(student),
    ):
        pass
    student.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(InputError, match="gradient_checkpointing"), TokenMasking(blocks, (0,), (0.5,))(student):
        pass


@pytest.mark.parametrize(
    ("layers", "ratios"), [((0, 1), (0.5,)), ((1, 0), (0.9, 0.8)), ((0, 1), (0.8, 0.9)), ((0,), (0.0,)), ((0,), (1.5,))]
)
def test_stages_and_shares_that_do_not_fit_are_refused(layers, ratios):
    with pytest.raises(RecipeError):
        TokenMasking("blocks", layers, ratios)


def test_without_masking_the_terms_are_those_of_the_functions():
    student, cl, mim = vit(), vit(24, 4, seed=1), vit(16, 6, seed=2)
    terms = [feature("cl", mask_ratio=0), relation("mim", mask_ratio=0)]
    module, _, signals = built(terms, student, cl=cl, mim=mim)
    output = module(batch(), signals)
    x, blocks = batch()["pixel_values"], find_layers()
    (own,), (theirs,) = hidden(student, x, [f"{blocks}.2"]), hidden(cl, x, [f"{blocks}.3"])
    head = module.part_of(terms[0])
    expected = whitened_feature_loss(own, theirs, head.weight, head.bias)
    torch.testing.assert_close(output.totals["feature"] / 4, expected.detach())
    assert terms[1].layer == 2
    assert terms[1].teacher_layer == 4
    assert terms[1].relation_heads == 2
    own, theirs = hidden(student, x, terms[1].student_taps), hidden(mim, x, terms[1].teacher_taps)
    torch.testing.assert_close(output.totals["relation"] / 4, token_relation_loss(*own, *theirs, 2))


def test_both_terms_read_one_masked_pass_at_their_own_layer():
    student = vit(layers=3)
    terms = [feature("cl", mask_ratio=0.6), relation("mim", mask_ratio=0.6, layer=1)]
    module, _, signals = built(terms, student, cl=vit(24, seed=1), mim=vit(seed=2))
    assert terms[0].around == terms[1].around
    passes = []
    student.register_forward_hook(lambda *args: passes.append(1))
    seen = module.observe(batch())
    assert len(passes) == 1
    kept = seen.notes[terms[0].around]
    assert seen.tapped[terms[0].on].shape[1] == kept.at().shape[1] == 1 + round(0.4 * 16)
    assert seen.tapped[terms[1].student_taps[0]].shape[1] == kept.at(1).shape[1] == 1 + round(0.6 * 16)
    loss = module(batch(), signals).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert module.part_of(terms[0]).weight.grad.abs().sum() > 0


def test_equal_models_have_no_relation_loss_even_when_tokens_are_dropped():
    """The teacher's own features depend on the dropped tokens, but those entering its first layer do not."""
    student = vit()
    objective = relation(mask_ratio=0.5, layer=0, stages=[0], keep_ratios=[0.5])
    module, _, signals = built([objective], student, teacher=vit())
    assert module(batch(), signals).totals["relation"].item() == pytest.approx(0, abs=1e-5)


def test_splitting_a_batch_changes_no_gradient():
    terms = [feature("cl"), relation("mim")]
    module, live, signals = built(terms, cl=vit(24, seed=1), mim=vit(seed=2))
    module(batch(), signals).loss.backward()
    whole = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    counts = {"feature": torch.tensor(4.0), "relation": torch.tensor(4.0)}
    for start in (0, 2):
        half = batch(2, start=start)
        module(half, {name: one.signal(half) for name, one in live.items()}, None, counts).loss.backward()
    for name, p in module.named_parameters():
        if name in whole:
            torch.testing.assert_close(p.grad, whole[name], rtol=1e-4, atol=1e-6)


def test_a_term_of_weight_zero_needs_no_teacher():
    terms = [feature("cl", weight=0.0), relation("mim")]
    module, _, signals = built(terms, cl=vit(24, seed=1), mim=vit(seed=2))
    assert module.teachers_for() == ["mim"]
    assert torch.isfinite(module(batch(), {"mim": signals["mim"]}).loss)
    terms = [feature("cl"), relation("mim", weight=0.0)]
    assert built(terms, cl=vit(24, seed=1), mim=vit(seed=2))[0].teachers_for() == ["cl"]


class NoClassToken(nn.Module):
    """A teacher whose tokens are patches alone."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 2, stride=2)
        self.blocks = nn.ModuleList([nn.Linear(6, 6)])

    def forward(self, pixel_values):
        tokens = self.embed(pixel_values).flatten(2).transpose(1, 2)
        return {"last_hidden_state": self.blocks[0](tokens)}


@pytest.mark.parametrize("mask_ratio", [0.0, 0.5])
def test_a_class_token_counts_only_where_both_models_have_one(mask_ratio):
    objective = feature(mask_ratio=mask_ratio, teacher_blocks="blocks", teacher_own_tokens=0)
    teacher = NoClassToken()
    module, _, signals = built([objective], teacher=teacher)
    seen = module.observe(batch())
    total = module(batch(), signals).totals["feature"]
    student, target = seen.tapped[objective.on], teacher(batch()["pixel_values"])["last_hidden_state"]
    kept = seen.notes[objective.around].at() if mask_ratio else torch.arange(17).expand(4, -1)
    head = module.part_of(objective)
    expected = whitened_feature_loss(student[:, 1:], target, head.weight, head.bias, kept[:, 1:] - 1)
    torch.testing.assert_close(total / 4, expected.detach())


def test_other_grids_and_wrong_layers_are_refused():
    module, _, signals = built([feature(teacher_own_tokens=0)], teacher=vit())
    with pytest.raises(ShapeError, match="16 patches"):
        module(batch(), signals)
    for objective, message in (
        (relation(layer=3), "0 to 2"),
        (relation(teacher_layer=-1), "0 to 2"),
        (feature(stages=[0, 3], keep_ratios=[0.9, 0.5]), "no such layer"),
    ):
        with pytest.raises(RecipeError, match=message):
            built([objective], teacher=vit())
    with pytest.raises(RecipeError, match="go together"):
        feature(stages=[0])
    with pytest.raises(RecipeError, match="own_tokens"):
        feature(own_tokens=-1)
    with pytest.raises(RecipeError, match="where the layers of the teacher are"):
        built([feature()], teacher=NoClassToken())
    with pytest.raises(RecipeError, match="no separate projections"):
        built([relation(teacher_blocks="blocks")], teacher=NoClassToken())
