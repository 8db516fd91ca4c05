"""MI-α in training: what its critics see, what accumulation does to it, and when it warns."""

import warnings

import pytest
import torch
from small_nets import Net, batch_of, seen, trainer

from potstill.errors import InputError, RecipeError
from potstill.losses import MIAlphaLoss
from potstill.objectives import MIAlphaObjective
from potstill.objectives.mutual_information import Critics
from potstill.taps import Signal

SIZES = {"hidden": 8, "out": 4}


def mi(pairs=(("second", "second"),), **options):
    return MIAlphaObjective("mi", pairs, **{**SIZES, **options})


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def built(objective, student, teacher):
    """The part for features of these shapes, and what the objective is shown of them."""
    torch.manual_seed(0)
    part = objective.build_part(Signal({}, student), Signal({}, teacher))
    rows = len(next(iter(student.values())))
    return part, lambda batch=None, progress=0.0: seen(
        batch or {"x": torch.zeros(rows)}, ({}, student), ({}, teacher), progress=progress
    )


def test_every_pair_has_a_critic_and_their_bounds_are_summed():
    objective = mi([("a", "c"), ("b", "c")], mi_alpha=0.5)
    student, teacher = {"a": drawn(6, 3), "b": drawn(6, 4, seed=1)}, {"c": drawn(6, 5, seed=2)}
    part, show = built(objective, student, teacher)
    assert [loss.alpha for loss in part.losses] == [0.5, 0.5]
    expected = sum(loss(student[s], teacher["c"]) for loss, s in zip(part.losses, "ab"))
    torch.testing.assert_close(objective.total(show(), part), 6 * expected)
    assert objective.count({"x": torch.zeros(6)}) == 6


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_tokens_become_one_vector(pool):
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0]])
    student = drawn(4, 3, 5).masked_fill(mask[..., None] == 0, torch.nan if pool == "mean" else 9.0)
    teacher = drawn(4, 3, 6, seed=1)
    objective = mi([("a", "b")], pool=pool, mask="mask")
    part, show = built(objective, {"a": student}, {"b": teacher})
    rows = [0, 1, 3]  # the third has no token
    if pool == "cls":
        vectors = [x[rows, 0] for x in (student, teacher)]
    else:
        vectors = [torch.stack([x[i][mask[i] == 1].mean(0) for i in rows]) for x in (student, teacher)]
    total = objective.total(show({"mask": mask}), part)
    torch.testing.assert_close(total, 3 * part.losses[0](*vectors))
    assert objective.count({"mask": mask}) == 3


def test_maps_are_averaged_over_their_places_and_vectors_taken_as_they_are():
    objective = mi([("a", "b")])
    student, teacher = drawn(4, 5, 2, 3), drawn(4, 6, seed=1)
    part, show = built(objective, {"a": student}, {"b": teacher})
    torch.testing.assert_close(objective.total(show(), part), 4 * part.losses[0](student.mean((2, 3)), teacher))


def test_rows_without_mask_of_tokens_can_be_left_out():
    keep = torch.tensor([True, False, True, True])
    objective = mi([("a", "b")], mask="keep")
    student, teacher = drawn(4, 5), drawn(4, 6, seed=1)
    part, show = built(objective, {"a": student}, {"b": teacher})
    torch.testing.assert_close(
        objective.total(show({"keep": keep}), part), 3 * part.losses[0](student[keep], teacher[keep])
    )


def test_during_the_warm_up_the_critics_learn_and_the_student_little_by_little():
    objective = mi([("a", "b")], warmup=0.5)
    gradients, critics = [], []
    for progress in (0.0, 0.25, 0.5, 0.9):
        student = drawn(6, 5).requires_grad_()
        part, show = built(objective, {"a": student}, {"b": drawn(6, 4, seed=1)})
        objective.before_step(None, None)
        objective.total(show(progress=progress), part).backward()
        gradients.append(student.grad)
        critics.append(part.losses[0].student_critic[0].weight.grad)
    assert (gradients[0] == 0).all()
    torch.testing.assert_close(gradients[1], gradients[2] / 2)
    torch.testing.assert_close(gradients[3], gradients[2])
    assert gradients[2].abs().max() > 0
    assert all(torch.equal(grad, critics[0]) for grad in critics)
    assert critics[0].abs().max() > 0


def test_under_accumulation_it_is_the_mean_over_micro_batches_and_says_so(tmp_path):
    """The bound of 8 rows is not that of 4 and 4: a larger K is the only thing that helps."""
    values = {}
    for batch, accumulation in ((8, 1), (4, 2)):
        made = trainer(tmp_path, [mi()], Net(), steps=1, batch=batch, accumulation=accumulation)
        part = made.model.parts["mi"]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made.train()
        values[batch] = made.history.events[-1]["terms"]["mi"]["value"]
        said = [str(w.message) for w in caught if "accumulation makes the bound no better" in str(w.message)]
        assert len(said) == (accumulation > 1)
    fresh = trainer(tmp_path, [mi()], Net(), steps=1, batch=4, accumulation=2).model
    part = fresh.parts["mi"].eval()
    fresh.student.train()
    by_hand = []
    for rows in (range(4), range(4, 8)):
        batch = batch_of(rows)
        teacher = Net().eval()
        with torch.no_grad():
            features = [net.second(torch.relu(net.first(batch["numbers"]))) for net in (fresh.student, teacher)]
            by_hand.append(part.losses[0](*features).item())
    assert values[4] == pytest.approx(sum(by_hand) / 2, abs=1e-6)
    assert values[8] != pytest.approx(values[4], abs=5e-6)


def test_a_bound_that_stays_at_zero_raises_the_alarm_once():
    objective, part = mi([("a", "b")]), Critics([MIAlphaLoss(4, 3, **SIZES)])
    for _ in range(199):
        part.remember(torch.tensor(0.02))
        objective.before_step(None, part)
    part.remember(torch.tensor(0.02))
    with pytest.warns(UserWarning, match=r"mi: the bound of mutual information is 0.02 nats after 200 batches"):
        objective.before_step(None, part)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(100):
            objective.before_step(None, part)


def test_a_bound_that_holds_raises_none():
    objective, part = mi([("a", "b")]), Critics([MIAlphaLoss(4, 3, **SIZES)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(300):
            part.remember(torch.tensor(0.5))
            objective.before_step(None, part)


def test_training_raises_the_bound_and_moves_critic_and_student_in_one_optimiser(tmp_path):
    made = trainer(tmp_path, [mi()], Net(), steps=60, weight_decay=0.1, batch=16)
    before = {k: v.clone() for k, v in made.model.state_dict().items()}
    made.train()
    values = [event["terms"]["mi"]["value"] for event in made.history.events if event["event"] == "step"]
    assert sum(values[-10:]) < sum(values[:10]) - 1
    moved = {k for k, v in made.model.state_dict().items() if not torch.equal(v, before[k])}
    assert {"student.second.weight", "parts.mi.losses.0.student_critic.0.weight"} <= moved
    names = {id(p): n for n, p in made.model.named_parameters() if p.requires_grad}
    undecayed = {names[id(p)] for g in made.optimizer.param_groups if g["weight_decay"] == 0 for p in g["params"]}
    assert {n for n in names.values() if n.endswith("bias")} <= undecayed
    assert "parts.mi.losses.0.baseline.0.weight" not in undecayed


@pytest.mark.parametrize("queue", [0, 12])
def test_a_resumed_run_ends_alike_its_queue_included(tmp_path, queue):
    ends = []
    for checkpoint in (None, "checkpoint-2"):
        made = trainer(tmp_path, [mi(queue=queue)], Net(), steps=4, save_strategy="steps", save_steps=2)
        made.train(resume_from_checkpoint=str(tmp_path / checkpoint) if checkpoint else None)
        ends.append({k: v.clone() for k, v in made.model.state_dict().items()})
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name
    assert any("kept_student" in name for name in ends[0]) == bool(queue)


def test_what_makes_no_objective_is_refused():
    with pytest.raises(RecipeError, match=r"mi.pairs: no layers"):
        mi([])
    with pytest.raises(RecipeError, match=r"mi.pairs\[1\]: is no pair of taps"):
        mi([("a", "b"), ("a",)])
    with pytest.raises(RecipeError, match=r"mi.pool.*cls"):
        mi(pool="max")
    with pytest.raises(RecipeError, match=r"mi.warmup"):
        mi(warmup=2)
    with pytest.raises(RecipeError, match="cannot be pooled"):
        mi([("a", "b")]).build_part(Signal({}, {"a": drawn(3)}), Signal({}, {"b": drawn(3, 2)}))
    with pytest.raises(InputError, match=r"a number in \[0, 1\]"):
        mi([("a", "b")], mi_alpha=3).build_part(Signal({}, {"a": drawn(3, 2)}), Signal({}, {"b": drawn(3, 2)}))
    objective = mi([("a", "b")])
    part, show = built(objective, {"a": drawn(1, 2)}, {"b": drawn(1, 2)})
    with pytest.raises(InputError, match="at least 2"):
        objective.total(show(), part)
