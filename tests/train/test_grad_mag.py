import pytest
import torch
from torch import nn
from toy_models import Toy, ToyData, collate, trainer

from potstill.errors import RecipeError
from potstill.losses import kd_kl
from potstill.objectives import HiddenObjective, LabelObjective, OutputObjective, Where
from potstill.taps import Signal
from potstill.train import DistillModule
from potstill.train.grad_mag import last_layer

LAST = "text.blocks.0."


def balanced(*objectives):
    for objective in objectives:
        objective.balanced = True
    return list(objectives)


def three():
    """Return two balanced terms of very different size, and one with a weight of its own."""
    kd = OutputObjective("kd", kd_kl, "logits", where=Where(labels="labels"), options={"temperature": 4.0})
    labels = LabelObjective("labels", "logits", "labels")
    fixed = OutputObjective("fixed", kd_kl, "logits", weight=0.25)
    return [*balanced(kd, labels), fixed]


def student(seed=1):
    return Toy(width=4, layers=1, seed=seed)


def batch():
    return collate([ToyData()[i] for i in range(8)])


def signal(rows):
    with torch.no_grad():
        return Signal(dict(Toy()(rows["pixels"], rows["words"], rows["words_mask"])))


def module(objectives=None):
    built = DistillModule(student(), objectives or three())
    built.build_parts(batch(), signal(batch()))
    return built


def weights_by_hand(built, rows, names=("kd", "labels")):
    """Return 1 / norm of each term's own gradient in the last layer, divided by their sum."""
    norms = []
    for objective in (o for o in built.objectives if o.name in names):
        loss = built.total_of(objective, rows, signal(rows)) / objective.count(rows)
        layer = [p for n, p in built.student.named_parameters() if n.startswith(LAST)]
        grads = torch.autograd.grad(loss, layer)
        norms.append(torch.cat([g.flatten() for g in grads]).norm())
    inverse = 1 / (torch.stack(norms) + 1e-8)
    return inverse / inverse.sum()


def values(built):
    return torch.stack([built.balance.of(o) for o in built.balance.objectives])


def test_weights_are_the_inverse_norms_divided_by_their_sum():
    built, rows = module(), batch()
    assert values(built).tolist() == [0.5, 0.5]
    expected = weights_by_hand(built, rows)
    built(rows, signal(rows))
    built.balance.take()
    torch.testing.assert_close(values(built), expected.float())
    assert expected.max() > 0.6


def test_loss_is_the_weighted_sum():
    built, rows = module(), batch()
    built(rows, signal(rows))
    built.balance.take()
    output = built(rows, signal(rows))
    means = {n: output.totals[n] / output.counts[n] for n in output.totals}
    w = values(built)
    expected = w[0] * means["kd"] + w[1] * means["labels"] + 0.25 * means["fixed"]
    torch.testing.assert_close(output.loss.detach(), expected, check_dtype=False)
    assert built.weight_of(built.objectives[0]) == pytest.approx(w[0].item())


def test_measuring_leaves_the_gradients_as_they_are():
    built, rows = module(), batch()
    built(rows, signal(rows)).loss.backward()
    own = {n: p.grad.clone() for n, p in built.student.named_parameters() if p.grad is not None}
    plain = DistillModule(student(), three())
    for objective in plain.objectives:
        objective.weight, objective.balanced = (0.25 if objective.name == "fixed" else 0.5), False
    plain(rows, signal(rows)).loss.backward()
    for name, parameter in plain.student.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(own[name], parameter.grad)


@pytest.mark.parametrize(("size", "accumulation"), [(4, 2), (1, 8)])
def test_how_a_batch_is_split_does_not_matter(tmp_path, size, accumulation):
    runs = [
        trainer(
            tmp_path / f"{b}", student=DistillModule(student(), three()), teacher=Toy(), steps=4, batch=b,
            accumulation=a, optim="sgd",
        )
        for b, a in ((8, 1), (size, accumulation))
    ]  # fmt: skip
    for run in runs:
        run.train()
    one, other = (run.model for run in runs)
    torch.testing.assert_close(values(other), values(one), rtol=1e-4, atol=1e-6)
    for p, q in zip(other.parameters(), one.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_weights_of_the_first_step_are_measured_on_it(tmp_path):
    run = trainer(tmp_path, student=DistillModule(student(), three()), teacher=Toy(), steps=1, batch=8, history=None)
    expected = weights_by_hand(run.model, batch())
    run.train()
    first = next(e for e in run.history.events if e["event"] == "step")
    means = {name: term["value"] for name, term in first["terms"].items()}
    total = expected[0] * means["kd"] + expected[1] * means["labels"] + 0.25 * means["fixed"]
    assert first["loss"] == pytest.approx(total.item(), rel=1e-5)


def test_a_resumed_run_goes_on_with_its_weights(tmp_path):
    def make(folder):
        return trainer(
            tmp_path / folder, student=DistillModule(student(), three()), teacher=Toy(), steps=6, save_strategy="steps",
            save_steps=3,
        )  # fmt: skip

    straight, again = make("run"), make("run")
    straight.train()
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    state, other = straight.model.state_dict(), again.model.state_dict()
    assert "parts.kd_gradmag.value" in state
    assert all(torch.equal(state[name], other[name]) for name in state)


def test_a_dropped_step_leaves_the_weights(tmp_path):
    run = trainer(
        tmp_path, student=DistillModule(student(), three()), teacher=Toy(), steps=3, batch=4, optim="sgd",
        data=ToyData(bad=(5,)), on_nonfinite="skip",
    )  # fmt: skip
    seen = []
    take = run.model.balance.take

    def watched(*arguments):
        take(*arguments)
        seen.append(values(run.model).clone())

    run.model.balance.take = watched
    run.train()
    assert len(seen) == 4  # the trial of the first window, and three steps
    assert torch.equal(seen[2], seen[1])
    assert not torch.equal(seen[3], seen[2])


def test_a_resting_term_keeps_its_weight():
    hidden = [HiddenObjective(f"hidden.{m}", [("text.blocks.0", "text.blocks.1")], module=m) for m in ("image", "text")]
    built = DistillModule(student(), balanced(*hidden, *three()[:2]))
    rows = batch()
    taps = {"text.blocks.1": torch.randn(8, 4, 6), "text.blocks.0": torch.randn(8, 4, 6)}
    both = Signal(signal(rows).outputs, taps)
    built.build_parts(rows, both)
    built(rows, both, {"text": 1.0})
    built.balance.take()
    w = values(built)
    assert w[0].item() == 0.25
    assert w.sum().item() == pytest.approx(1)


def test_a_term_that_does_not_reach_the_last_layer_is_refused():
    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.other = nn.ModuleList([nn.Linear(3, 3)]), nn.Linear(3, 5)

        def forward(self, pixels):
            return {"logits": self.layers[0](pixels.mean(1)), "others": self.other(pixels.mean(1))}

    built = DistillModule(Apart(), balanced(LabelObjective("apart", "others", "labels")))
    built.build_parts(batch(), None)
    with pytest.raises(RecipeError, match=r'apart\.weight: its gradient does not reach the last layer "layers\.0"'):
        built(batch())


def test_last_layer_is_that_of_the_longest_list_which_is_trained():
    toy = Toy(layers=2)
    assert last_layer(toy, "here")[0] == "text.blocks.1"
    toy.text.blocks[1].requires_grad_(False)
    assert last_layer(toy, "here")[0] == "text.blocks.0"
    with pytest.raises(RecipeError, match="here: the student has no list of layers"):
        last_layer(nn.Linear(2, 2), "here")


@pytest.mark.parametrize("setting", [{"shard": True}, {"fp16": True}])
def test_where_single_gradients_cannot_be_had_it_is_refused(tmp_path, setting):
    with pytest.raises(RecipeError, match="weight: gradmag needs"):
        trainer(tmp_path, student=DistillModule(student(), three()), teacher=Toy(), **setting)
