"""Objectives on attention maps: masks, pairs, shapes, projections; AMAD inside a DistillModule."""

import copy

import pytest
import torch
from torch import nn

from potstill.errors import InputError, RecipeError
from potstill.losses import amad_loss, head_mean, kd_kl, one_to_one_heads
from potstill.objectives import AMADObjective, AttentionObjective, OutputObjective, Seen
from potstill.taps import Signal
from potstill.teachers import LiveTeacher
from potstill.train import DistillModule

B, Q, K = 3, 4, 5


def maps(heads, seed=0, queries=Q, keys=K):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, heads, queries, keys, generator=generator).softmax(-1)


def seen(student, teacher, **batch):
    return Seen(
        {"x": torch.zeros(B, 2), **batch},
        Signal({}, {"a@self_attention": student}),
        Signal({}, {"b@self_attention": teacher}),
    )


PAIRS = [("a", "b", "self")]


@pytest.mark.parametrize(("loss", "options"), [(amad_loss, {"tau": 0.1}), (one_to_one_heads, {}), (head_mean, {})])
def test_the_total_is_the_sum_of_the_loss_over_samples_under_the_query_mask(loss, options):
    student, teacher = maps(2), maps(8, 1)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    objective = AttentionObjective("o", loss, PAIRS, mask="m", options=options)
    shown = seen(student, teacher, m=mask)
    expected = loss(student, teacher, query_mask=mask.bool(), reduction="none", **options)
    assert objective.total(shown, None).item() == pytest.approx(expected.sum().item(), rel=1e-6)
    assert objective.count(shown.batch) == B


def test_several_pairs_are_averaged():
    both = {"a@self_attention": maps(2), "c@cross_attention": maps(2, 2)}
    shown = Seen({"x": torch.zeros(B)}, Signal({}, both), Signal({}, {"b@self_attention": maps(4, 1)}))
    objective = AttentionObjective(
        "o", amad_loss, [("a", "b", "self"), ("c@cross_attention", "b@self_attention")], options={"variant": "mse"}
    )
    expected = sum(amad_loss(m, maps(4, 1), variant="mse", reduction="sum") for m in both.values()) / 2
    assert objective.total(shown, None).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_projection_becomes_a_part_and_starts_as_no_change():
    objective = AMADObjective("kd", PAIRS, 1.0, variant="projected_kl")
    shown = seen(maps(2), maps(8, 1))
    part = objective.build_part(shown.student, shown.teacher)
    plain = AMADObjective("kd", PAIRS, 1.0).total(shown, None)
    assert objective.total(shown, part).item() == pytest.approx(plain.item(), rel=1e-5)
    assert sum(p.numel() for p in part.parameters()) == (Q * K) ** 2 + Q * K


def test_maps_over_another_grid_are_resized_when_asked_and_refused_otherwise():
    teacher = maps(4, 1, 17, 17)  # CLS and a 4 x 4 grid
    shown = seen(maps(2, 0, 5, 5), teacher)
    with pytest.raises(RecipeError, match="different positions"):
        AMADObjective("kd", PAIRS).build_part(shown.student, shown.teacher)
    objective = AMADObjective("kd", PAIRS, resize={"from": [4, 4], "to": [2, 2]})
    assert objective.build_part(shown.student, shown.teacher) is None
    assert torch.isfinite(objective.total(shown, None))
    wrong = AMADObjective("kd", PAIRS, resize={"from": [3, 3], "to": [2, 2]})
    with pytest.raises(InputError) as caught:
        wrong.build_part(shown.student, shown.teacher)
    assert caught.value.where.startswith("amad.resize")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "no layers"),
        (["ab"], "no pair of layers"),
        ([("a", "b", "both")], "no such attention"),
        ([("a@output", "b")], "no tap of an attention map"),
    ],
)
def test_pairs_that_are_none_are_refused(pairs, message):
    with pytest.raises(RecipeError, match=message):
        AMADObjective("kd", pairs)


def test_other_mistakes_are_refused_by_name():
    with pytest.raises(RecipeError, match="no loss of attention maps"):
        AttentionObjective("o", kd_kl, PAIRS)
    with pytest.raises(RecipeError, match='takes no "taus"'):
        AttentionObjective("o", amad_loss, PAIRS, options={"taus": 1})
    shown = seen(maps(2), maps(8))
    with pytest.raises(InputError, match="variant"):
        AMADObjective("kd", PAIRS, variant="kll").total(shown, None)
    with pytest.raises(RecipeError, match="pair of grids"):
        AMADObjective("kd", PAIRS, resize={"from": [1, 1]})
    with pytest.raises(InputError, match="no grid"):
        AMADObjective("kd", PAIRS, resize={"from": [1, 1], "to": [0, 1]})
    with pytest.raises(RecipeError, match="finite and not negative"):
        AMADObjective("kd", PAIRS, -1.0)


class Net(nn.Module):
    """A layer of attention and a head."""

    def __init__(self, heads):
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.attention = nn.MultiheadAttention(8, heads, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        hidden = self.embed(x)
        hidden = self.attention(hidden, hidden, hidden, need_weights=False)[0]
        return {"logits": self.head(hidden.mean(1))}


def built(alpha="auto", **options):
    torch.manual_seed(0)
    teacher, student = Net(4), Net(2)
    kd = OutputObjective("kd", kd_kl, "logits")
    module = DistillModule(student, [kd, AMADObjective(kd, [("attention", "attention")], alpha, **options)])
    live = LiveTeacher(teacher, outputs=module.teacher_outputs, taps=module.teacher_taps)
    batch = {"x": torch.randn(6, 5, 3)}
    module.build_parts(batch, live.signal(batch))
    return module, live, batch


def test_the_loss_is_kd_plus_alpha_times_amad_and_only_the_student_gets_a_gradient():
    module, live, batch = built(0.5)
    output = module(batch, live.signal(batch))
    kd, amad = (output.totals[n] / output.counts[n] for n in ("kd", "amad"))
    assert output.loss.item() == pytest.approx((kd + 0.5 * amad).item(), rel=1e-6)
    output.loss.backward()
    assert module.student.attention.in_proj_weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in live.model.parameters())


def test_automatic_alpha_makes_the_terms_equal_on_average_over_fifty_steps_and_then_stays():
    module, live, batch = built()
    seen_kd, seen_amad = [], []
    for step in range(60):
        alpha = module.weight_of(module.objectives[1])
        output = module({"x": batch["x"] * (1 + step / 30)}, live.signal(batch))
        means = {n: (output.totals[n] / output.counts[n]).item() for n in output.totals}
        assert output.loss.item() == pytest.approx(means["kd"] + alpha * means["amad"], rel=1e-5)
        if step < 50:
            assert module.alphas.are_measured
            seen_kd.append(means["kd"])
            seen_amad.append(means["amad"])
        module.alphas.take(means)
    assert not module.alphas.are_measured
    assert module.weight_of(module.objectives[1]) == pytest.approx(sum(seen_kd) / sum(seen_amad), rel=1e-5)


def test_alpha_starts_from_one_batch_and_is_part_of_the_state():
    module, live, batch = built()
    values, _ = module.rehearse(batch, live.signal(batch))
    assert module.weight_of(module.objectives[1]) == pytest.approx(values["kd"] / values["amad"], rel=1e-5)
    module.alphas.take({"kd": 3.0, "amad": 2.0})
    other = built()[0]
    other.load_state_dict(copy.deepcopy(module.state_dict()))
    assert other.weight_of(other.objectives[1]) == 1.5
    other.alphas.take({"kd": 1.0, "amad": 2.0})
    assert other.weight_of(other.objectives[1]) == 1.0


def test_a_step_that_says_nothing_about_the_ratio_is_left_out():
    module, _, _ = built()
    module.alphas.take({"kd": 3.0, "amad": 2.0})
    for means in ({"kd": float("nan"), "amad": 1.0}, {"kd": 1.0}, {"kd": 1.0, "amad": 0.0}):
        module.alphas.take(means)
    assert module.weight_of(module.objectives[1]) == 1.5


def test_what_alpha_is_measured_against_has_to_be_there():
    kd = OutputObjective("kd", kd_kl, "logits")
    with pytest.raises(RecipeError, match=r"no objective \"kl\".*kd"):
        DistillModule(Net(2), [kd, AMADObjective("kl", [("attention", "attention")])])
    with pytest.raises(RecipeError, match="nothing to measure"):
        DistillModule(Net(2), [AMADObjective([], [("attention", "attention")])])
