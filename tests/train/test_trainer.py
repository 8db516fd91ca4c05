"""The engine: accumulation, resume, policies, contracts with the teacher."""

import json

import pytest
import torch
from rank_cases import Net, Uneven, counted
from toy_models import Toy, ToyData, arguments, collate, objectives, trainer

from potstill.errors import InputError, IntegrityError, NumericsError, RecipeError
from potstill.losses import kd_kl
from potstill.objectives import HiddenObjective, OutputObjective, Where
from potstill.policies import AllModulesPolicy, FixedArmPolicy, OptimaPolicy, RoundRobinPolicy
from potstill.teachers import LiveTeacher, fingerprint
from potstill.train import DistillationTrainer, DistillModule
from potstill.train.checkpoint import list_checkpoints


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


ARMS = [("image",), ("text",)]


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (2, 4), (1, 8)])
def test_gradients_do_not_depend_on_how_a_batch_is_split(tmp_path, batch, accumulation):
    def trained(batch, accumulation):
        t = trainer(
            tmp_path / str(batch), student=Toy(4, 1, 0.0, seed=1), batch=batch, accumulation=accumulation, steps=4,
            optim="sgd", max_grad_norm=0,
        )  # fmt: skip
        t.train()
        return weights(t.model)

    whole, split = trained(8, 1), trained(batch, accumulation)
    for name in whole:
        torch.testing.assert_close(split[name], whole[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stop", [4, 5, 6, 7])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_equals_the_straight_one_bit_for_bit(tmp_path, stop, accumulation):
    """Steps 4..7 lie before, at and after a round boundary (rounds of 3); dropout and projectors are on."""
    common = {"save_strategy": "steps", "save_steps": 1, "keep_checkpoints": 0, "accumulation": accumulation}
    straight = trainer(
        tmp_path / "a", policy=OptimaPolicy(ARMS, warmup_rounds=1), history=tmp_path / "a.jsonl", **common
    )
    straight.train()
    events = straight.history.events

    resumed = trainer(
        tmp_path / "b", policy=OptimaPolicy(ARMS, warmup_rounds=1), history=tmp_path / "a.jsonl", **common
    )
    torch.manual_seed(999)  # whatever the global generator does in between must not matter
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{stop}"))
    assert same(weights(straight.model), weights(resumed.model))
    assert straight.policy.history == resumed.policy.history

    def without_time(events):
        return [{k: v for k, v in e.items() if k != "seconds"} for e in events]

    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert without_time(lines) == without_time(events)
    assert resumed.history.events == lines


def test_a_run_resumed_between_two_logs_logs_the_same(tmp_path):
    common = {"save_strategy": "steps", "save_steps": 1, "keep_checkpoints": 0, "logging_steps": 4}
    straight = trainer(tmp_path, history=tmp_path / "a.jsonl", **common)
    straight.train()
    losses = [event["loss"] for event in straight.history.events]
    resumed = trainer(tmp_path, history=tmp_path / "a.jsonl", **common)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert [event["loss"] for event in resumed.history.events] == losses


@pytest.mark.parametrize(("every", "expected"), [(4, [4, 6]), (6, [6]), (20, [6])])
def test_the_last_steps_are_logged_though_no_interval_ends_there(tmp_path, every, expected):
    seldom, always = (trainer(tmp_path, steps=6, logging_steps=n) for n in (every, 1))
    for one in (seldom, always):
        one.train()
    assert [event["step"] for event in seldom.history.events] == expected
    counts = [sum(e["terms"]["answer"]["count"] for e in one.history.events) for one in (seldom, always)]
    assert counts[0] == counts[1]


def test_resuming_from_the_last_step_trains_no_further(tmp_path):
    """With a constant learning rate one step too many would show in the weights."""
    common = {"save_strategy": "steps", "save_steps": 3, "steps": 6, "lr_scheduler_type": "constant"}
    straight = trainer(
        tmp_path / "a", policy=RoundRobinPolicy(ARMS, warmup_rounds=1), history=tmp_path / "a.jsonl", **common
    )
    straight.train()
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    resumed = trainer(
        tmp_path / "a", policy=RoundRobinPolicy(ARMS, warmup_rounds=1), history=tmp_path / "a.jsonl", **common
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-6"))
    assert same(weights(straight.model), weights(resumed.model))
    assert straight.policy.history == resumed.policy.history
    assert (tmp_path / "a.jsonl").read_text().splitlines() == lines


def test_the_teacher_is_left_as_it_was(tmp_path):
    teacher = Toy()
    before = fingerprint(teacher)
    trainer(tmp_path, teacher=teacher).train()
    assert fingerprint(teacher) == before
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not teacher.training


def test_the_policy_sees_one_round_per_round_steps_and_the_last_one_is_closed(tmp_path):
    policy = RoundRobinPolicy(ARMS)
    t = trainer(tmp_path, policy=policy, steps=10)
    t.train()
    assert [arm for _, arm, _ in policy.history] == [0, 1, 0, 1]
    rounds = [e for e in t.history.events if e["event"] == "round"]
    assert [e["step"] for e in rounds] == [3, 6, 9, 10]
    assert [e["arm"] for e in rounds] == ["image", "text", "image", "text"]
    assert set(rounds[0]["posterior"]) == {"image", "text"}


def test_only_the_active_arm_moves_its_projector(tmp_path):
    t = trainer(tmp_path, policy=FixedArmPolicy(ARMS, arm=0), weight_decay=0.0)
    before = weights(t.model.parts)
    t.train()
    after = weights(t.model.parts)
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"hidden_image"}
    assert any(name.startswith("hidden_text") for name in before)


def test_all_modules_policy_equals_layerwise_distillation_without_a_policy(tmp_path):
    def trained(policy):
        t = trainer(tmp_path / str(policy is None), policy=policy, student=Toy(4, 1, 0.0, seed=1))
        t.train()
        return weights(t.model)

    assert same(trained(None), trained(AllModulesPolicy(ARMS)))


def test_without_hidden_weight_the_arm_cannot_change_gradients(tmp_path):
    def trained(arm):
        t = trainer(
            tmp_path / str(arm), policy=FixedArmPolicy(ARMS, arm=arm), objective_list=objectives(hidden=0.0),
            student=Toy(4, 1, 0.0, seed=1), weight_decay=0.0,
        )  # fmt: skip
        t.train()
        return weights(t.model.student)

    assert same(trained(0), trained(1))


def test_hidden_loss_is_zero_for_a_copy_of_the_teacher():
    teacher, student = Toy(), Toy()
    module = DistillModule(student, objectives(layers_s=2))
    batch = collate([ToyData()[i] for i in range(6)])
    live = LiveTeacher(teacher, outputs=module.teacher_outputs, taps=module.teacher_taps)
    module.build_parts(batch, live.signal(batch))
    assert len(module.parts) == 0
    output = module(batch, live.signal(batch))
    assert all(float(total) == pytest.approx(0.0, abs=1e-6) for total in output.totals.values())


def test_an_equal_hidden_weight_scales_a_single_arm_by_the_number_of_modules(tmp_path):
    t = trainer(tmp_path, policy=FixedArmPolicy(ARMS, arm=1), equal_hidden_weight=True, steps=3)
    t.rounds.before_step(0)
    assert t.weights == {"image": 0.0, "text": 2.0}


def test_parameters_that_no_objective_reaches_are_frozen_and_named(tmp_path):
    student = Toy(4, 1, seed=1)
    student.idle = torch.nn.Linear(2, 2)
    t = trainer(tmp_path, student=student)
    assert t.untrained == ["idle.weight", "idle.bias"]


def test_building_the_trainer_leaves_running_statistics_as_they_were(tmp_path):
    class Normed(Toy):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(3)

        def forward(self, pixels, words, words_mask=None):
            return super().forward(self.norm(pixels.flatten(0, 1)).view_as(pixels), words, words_mask)

    student = Normed()
    t = trainer(tmp_path, student=student, policy=OptimaPolicy([("image",), ("text",)], warmup_rounds=1), steps=2)
    assert student.norm.num_batches_tracked == 0
    assert not student.norm.running_mean.any()
    t.train()
    assert student.norm.num_batches_tracked == 2


def test_layers_that_only_a_resting_module_reaches_get_a_zero_gradient(tmp_path):
    """Otherwise DDP waits for it for ever, and the optimiser would treat them differently in one process."""
    module = trainer(tmp_path, student=Net(4, 1, seed=1), teacher=Net(), objective_list=counted(), data=Uneven()).model
    batch = collate([Uneven()[i] for i in range(4)])
    module(batch, LiveTeacher(Net(), outputs=["logits"], taps=module.teacher_taps).signal(batch), {}).loss.backward()
    assert all(not p.grad.any() for p in module.student.side.parameters())
    assert all(p.grad is not None for p in module.parameters())


def test_a_batch_with_nothing_to_count_leaves_no_parameter_without_a_gradient(tmp_path):
    """On one rank of two it would make DDP wait for ever."""
    module = trainer(tmp_path, student=Net(4, 1, seed=1), teacher=Net(), objective_list=counted(), data=Uneven()).model
    batch = collate([Uneven()[i] for i in range(12, 16)])
    assert not batch["few"].any()
    signal = LiveTeacher(Net(), outputs=["logits"], taps=module.teacher_taps).signal(batch)
    module(batch, signal).loss.backward()
    assert all(p.grad is not None for p in module.parameters())
    text = next(o for o in module.objectives if o.name == "hidden.text")
    assert not any(p.grad.any() for p in module.part_of(text).parameters())


def test_the_probe_changes_neither_mode_nor_random_state(tmp_path):
    t = trainer(tmp_path, policy=OptimaPolicy(ARMS))
    t.model.train()
    state = torch.get_rng_state()
    values = t._draw_probe().measure(t.model)
    assert torch.equal(state, torch.get_rng_state())
    assert t.model.training
    assert set(values) == {"answer", "hidden.image", "hidden.text"}


def test_a_term_that_becomes_nan_is_named_with_step_and_samples(tmp_path):
    t = trainer(tmp_path, steps=3)
    with torch.no_grad():
        t.model.student.head.weight.fill_(float("inf"))
    with pytest.raises(NumericsError, match=r'step 0: the term "answer" became nan.*samples \[0, 1, 2'):
        t.train()


def test_an_unfinished_checkpoint_is_refused_and_the_one_before_taken(tmp_path):
    common = {"save_strategy": "steps", "save_steps": 2, "keep_checkpoints": 0}
    t = trainer(tmp_path, steps=6, **common)
    t.train()
    newest = list_checkpoints(tmp_path)[-1]
    (newest / "student.safetensors").write_bytes(b"torn")
    assert t.newest_checkpoint().name == "checkpoint-4"
    with pytest.raises(IntegrityError, match=r"student\.safetensors: the file changed"):
        t.train(resume_from_checkpoint=str(newest))


def test_no_valid_checkpoint_is_an_error_that_says_why(tmp_path):
    with pytest.raises(IntegrityError, match=r"no complete checkpoint.*an empty folder"):
        trainer(tmp_path / "x").train(resume_from_checkpoint=True)


def test_resuming_with_other_layers_is_refused(tmp_path):
    trainer(tmp_path, save_strategy="steps", save_steps=6).train()
    other = trainer(tmp_path, student=Toy(5, 1, seed=1))
    with pytest.raises(IntegrityError, match="do not fit this recipe"):
        other.train(resume_from_checkpoint=True)


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    trainer(tmp_path, save_strategy="steps", save_steps=2, keep_checkpoints=2).train()
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-12"]
    assert not (tmp_path / ".growing").exists()


def test_parts_are_in_the_checkpoint_but_not_in_the_student(tmp_path):
    t = trainer(tmp_path, save_strategy="steps", save_steps=6, keep_checkpoints=1)
    t.train()
    names = {p.name for p in list_checkpoints(tmp_path)[0].iterdir()}
    assert {"student.safetensors", "parts.safetensors", "policy.json", "manifest.json"} <= names
    assert not any("parts" in k or "hidden" in k for k in t.model.student.state_dict())


def test_an_arm_of_an_unknown_module_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r'unknown module "audio".*image, text'):
        trainer(tmp_path, policy=OptimaPolicy([("audio",)]))


def test_widths_that_differ_without_a_projector_are_refused(tmp_path):
    strict = [HiddenObjective("hidden.image", [("image.blocks.0", "image.blocks.1")], module="image", projector="none")]
    with pytest.raises(RecipeError, match=r"hidden\.image\.projector: widths differ.*student 4, teacher 6"):
        trainer(tmp_path, objective_list=strict)


def test_a_teacher_that_shares_a_parameter_with_the_student_is_refused(tmp_path):
    shared = Toy()
    with pytest.raises(InputError, match="share the parameter"):
        trainer(tmp_path, student=shared, teacher=shared, objective_list=objectives(layers_s=2))


def test_an_objective_on_a_teacher_needs_one():
    with pytest.raises(RecipeError, match="there is no"):
        DistillationTrainer(
            Toy(), [OutputObjective("a", kd_kl, "logits")], args=arguments("unused"), train_dataset=ToyData(),
            data_collator=collate,
        )  # fmt: skip


def test_evaluation_uses_the_objective_of_training(tmp_path):
    t = trainer(tmp_path, student=Toy(4, 1, 0.0, seed=1), per_device_eval_batch_size=8)
    batch = collate([ToyData()[i] for i in range(8)])
    loss, _, _ = t.prediction_step(t.model, batch, True)
    torch.testing.assert_close(loss, t.model(batch, t.teacher.signal(batch)).loss.detach())


def test_a_loop_of_ones_own_needs_no_trainer():
    student, teacher = Toy(4, 1, seed=1), Toy()
    module = DistillModule(student, [OutputObjective("answer", kd_kl, "logits", where=Where(labels="labels"))])
    live = LiveTeacher(teacher, outputs=module.teacher_outputs)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    batch = collate([ToyData()[i] for i in range(32)])
    losses = []
    for _ in range(30):
        loss = module(batch, live.signal(batch)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
