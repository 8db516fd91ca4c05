"""MEAL V2 in training: several teachers, the discriminator, and the trainer that puts both together."""

import copy

import pytest
import torch
from small_nets import Net, Numbers, arguments, collate, seen, trainer

from potstill.errors import InputError, RecipeError
from potstill.losses import kd_kl, meal_v2_similarity_loss
from potstill.objectives import MealV2DiscriminatorObjective, MealV2SimilarityObjective, OutputObjective
from potstill.systems import MealV2Trainer
from potstill.taps import Signal


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def of(objective, *names):
    objective.of = names
    return objective


def show(student, teachers, batch=None):
    signals = {name: ({"logits": logits}, {}) for name, logits in teachers.items()}
    return seen(batch or {"x": torch.zeros(len(student))}, ({"logits": student}, {}), teachers=signals)


def test_the_similarity_reads_the_teachers_it_names_and_no_other():
    student, teachers = drawn(6, 4), {name: drawn(6, 4, seed=i) for i, name in enumerate("abc", 1)}
    objective = of(MealV2SimilarityObjective("s", "logits", teacher_weights=[3, 1]), "c", "a")
    expected = meal_v2_similarity_loss(student, [teachers["c"], teachers["a"]], weights=[3, 1], reduction="sum")
    torch.testing.assert_close(objective.total(show(student, teachers), None), expected)
    assert objective.count({"x": torch.zeros(6)}) == 6


def test_rows_that_do_not_count_are_left_out():
    student, teachers = drawn(6, 4), {"a": drawn(6, 4, seed=1), "b": drawn(6, 4, seed=2)}
    keep = torch.tensor([True, True, False, True, False, False])
    for kind, options in ((MealV2SimilarityObjective, {}), (MealV2DiscriminatorObjective, {"shrink": 2})):
        objective = of(kind("m", "logits", mask="keep", **options), "a", "b")
        part = objective.build_part(Signal({"logits": student}), None)
        spoilt = student.masked_fill(~keep[:, None], torch.nan)
        total = objective.total(show(spoilt, teachers, {"keep": keep}), part)
        kept = {name: logits[keep] for name, logits in teachers.items()}
        plain = of(kind("m", "logits", **options), "a", "b")
        torch.testing.assert_close(total, plain.total(show(student[keep], kept), part))
        assert objective.count({"keep": keep}) == 3


@pytest.mark.parametrize("adversarial", [True, False])
def test_the_discriminator_compares_with_the_mean_of_the_teachers_logits(adversarial):
    student, teachers = drawn(6, 4).requires_grad_(), {"a": drawn(6, 4, seed=1), "b": drawn(6, 4, seed=2)}
    objective = of(
        MealV2DiscriminatorObjective("d", "logits", shrink=1, adversarial=adversarial, strength=0.5), "a", "b"
    )
    torch.manual_seed(0)
    part = objective.build_part(Signal({"logits": student}), None)
    total = objective.total(show(student, teachers), part)
    total.backward()
    mean = (teachers["a"] + teachers["b"]) / 2
    other = student.detach().clone().requires_grad_()
    plain = 6 * part(other, mean, adversarial=False)
    plain.backward()
    torch.testing.assert_close(total, plain)
    assert other.grad.abs().max() > 0
    torch.testing.assert_close(student.grad, (-0.5 if adversarial else 1) * other.grad)


@pytest.mark.parametrize("kind", [MealV2SimilarityObjective, MealV2DiscriminatorObjective])
def test_a_step_does_not_depend_on_how_its_rows_are_split(tmp_path, kind):
    weights = []
    for batch, accumulation in ((8, 1), (4, 2)):
        net = Net(5, seed=1)
        net.norm.eval().train = lambda mode=True, net=net: net.norm
        options = {"shrink": 1} if kind is MealV2DiscriminatorObjective else {}
        objective = of(kind("m", "logits", **options), "a", "b")
        teachers = {"a": Net(seed=2), "b": Net(seed=3)}
        made = trainer(
            tmp_path, [objective], teachers, net, batch=batch, accumulation=accumulation, steps=2, optim="sgd"
        )
        made.train()
        weights.append(torch.cat([p.detach().flatten() for p in made.model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1])


def test_wrong_weights_and_outputs_are_refused():
    objective = of(MealV2DiscriminatorObjective("d", "logits", shrink=2, teacher_weights=[1]), "a", "b")
    student, teachers = drawn(6, 4), {"a": drawn(6, 4), "b": drawn(6, 4)}
    part = objective.build_part(Signal({"logits": student}), None)
    with pytest.raises(InputError, match=r"d.teacher_weights"):
        objective.total(show(student, teachers), part)
    with pytest.raises(RecipeError, match="no logits of rows"):
        objective.build_part(Signal({"logits": drawn(2, 3, 4)}), None)
    with pytest.raises(InputError, match="at least 64 classes"):
        MealV2DiscriminatorObjective("d", "logits").build_part(Signal({"logits": student}), None)


def meal(folder, teachers, student=None, *, steps=4, data=None, **options):
    settings = {k: options.pop(k) for k in ("save_strategy", "save_steps", "optim") if k in options}
    return MealV2Trainer(
        student if student is not None else Net(5, seed=1, dropout=0.1),
        teachers,
        args=arguments(folder, steps=steps, weight_decay=0.0, **settings),
        train_dataset=data or Numbers(),
        data_collator=collate,
        shrink=options.pop("shrink", 1),
        **options,
    )


def test_without_discriminator_and_with_one_teacher_it_is_plain_distillation(tmp_path):
    ends = []
    meal_v2 = meal(tmp_path, [Net(seed=2)], Net(5, seed=1), discriminator_weight=0, drop_at=None)
    plain = trainer(tmp_path, [OutputObjective("k", kd_kl, "logits")], Net(seed=2), steps=4, weight_decay=0.0)
    for made in (meal_v2, plain):
        made.train()
        ends.append({k: v.clone() for k, v in made.model.student.state_dict().items()})
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name])
    assert not len(meal_v2.model.parts)


def test_teachers_are_left_as_they_were_their_statistics_included(tmp_path):
    teachers = [Net(seed=2, dropout=0.5).train(), Net(seed=3, dropout=0.5).train()]
    before = [copy.deepcopy(t.state_dict()) for t in teachers]
    made = meal(tmp_path, teachers)
    made.train()
    for teacher, kept in zip(teachers, before):
        assert not teacher.training
        assert all(p.grad is None for p in teacher.parameters())
        for name, value in teacher.state_dict().items():
            assert torch.equal(value, kept[name]), name
    student = made.model.student
    assert student.norm.num_batches_tracked == 4  # the student's own norm is in train mode


def test_the_discriminator_learns_at_a_rate_of_its_own_and_all_rates_drop_once(tmp_path):
    made = meal(tmp_path, [Net(seed=2), Net(seed=3)], steps=9, optim="sgd")
    before = {k: v.clone() for k, v in made.model.parts.state_dict().items()}
    rates = []
    made.add_callback(_Rates(rates))
    made.train()
    assert [sorted(row) for row in rates[:5]] == [pytest.approx([1e-4, 1e-2])] * 5
    assert [sorted(row) for row in rates[5:]] == [pytest.approx([1e-5, 1e-3])] * 4
    assert all(group["momentum"] == 0.9 for group in made.optimizer.param_groups)
    assert any(not torch.equal(v, before[k]) for k, v in made.model.parts.state_dict().items())


class _Rates:
    """Notes the distinct learning rates that every step was taken with."""

    def __new__(cls, rows):
        from transformers import TrainerCallback

        class Callback(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, optimizer=None, **more):
                rows.append({group["lr"] for group in optimizer.param_groups})

        return Callback()


def test_the_checkpoint_holds_the_discriminator_and_its_optimiser_and_a_resumed_run_ends_alike(tmp_path):
    ends = []
    for checkpoint in (None, "checkpoint-2"):
        made = meal(tmp_path, [Net(seed=2), Net(seed=3)], save_strategy="steps", save_steps=2)
        made.train(resume_from_checkpoint=str(tmp_path / checkpoint) if checkpoint else None)
        ends.append({k: v.clone() for k, v in made.model.state_dict().items()})
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name
    assert any(name.startswith("parts.discriminator") for name in ends[0])
    state = torch.load(tmp_path / "checkpoint-2" / "optimizer.pt", weights_only=True)
    held = sum(len(group["params"]) for group in state["param_groups"])
    assert held == len(list(made.model.parameters()))


def test_teachers_can_be_given_by_name(tmp_path):
    made = meal(tmp_path, {"large": Net(seed=2), "small": Net(4, seed=3)}, teacher_weights=[2, 1])
    assert made.model.objectives[0].of == ("large", "small")
    assert set(made.teachers) == {"large", "small"}


def test_what_makes_no_training_is_refused(tmp_path):
    with pytest.raises(InputError, match="no teacher"):
        meal(tmp_path, [])
    with pytest.raises(InputError, match="drop_at"):
        meal(tmp_path, [Net(seed=2)], drop_at=1.5)
    with pytest.raises(InputError, match="drop_to"):
        meal(tmp_path, [Net(seed=2)], drop_to=0)
    with pytest.raises(InputError, match="discriminator_learning_rate"):
        meal(tmp_path, [Net(seed=2)], discriminator_learning_rate=0)
    with pytest.raises(InputError, match="at least 64 classes"):
        meal(tmp_path, [Net(seed=2)], shrink=8)
