"""Several teachers, learning rates of parts, surveys, schedules and what a teacher is given."""

import copy

import pytest
import torch
from torch import nn
from toy_models import Toy, ToyData, arguments, collate, trainer

from potstill.errors import InputError, RecipeError
from potstill.losses import kd_kl
from potstill.objectives import Objective, OutputObjective, Where
from potstill.teachers import LiveTeacher
from potstill.train import DistillationTrainer, DistillModule


def of(objective, *names):
    objective.of = names
    return objective


def answer(name, *teachers, weight=1.0):
    return of(OutputObjective(name, kd_kl, "logits", where=Where(labels="labels"), weight=weight), *teachers)


class Counting(Toy):
    calls = 0

    def forward(self, pixels, words, words_mask=None):
        self.calls += 1
        return super().forward(pixels, words, words_mask)


class Recorder(Objective):
    """Notes what it is shown; its loss pulls a part towards what the survey found."""

    surveys = True
    student_outputs = teacher_outputs = ("logits",)

    def __init__(self, name="recorder", **options):
        super().__init__(name, **options)
        self.seen, self.stepped = [], 0

    def build_part(self, student, teacher):
        part = nn.Linear(5, 1)
        part.register_buffer("total", torch.zeros(5))
        part.register_buffer("rows", torch.zeros(()))
        return part

    def look(self, seen, part):
        assert seen.student is None
        part.total += seen.teacher.outputs["logits"].sum(0)
        part.rows += len(seen.batch["sample_id"])

    def finish(self, part):
        part.total /= part.rows

    def before_step(self, student, part):
        self.stepped += 1
        part.bias.zero_()

    def count(self, batch):
        return Where().count(batch)

    def total(self, seen, part):
        self.seen.append((seen.progress, seen.epoch))
        assert not part.bias.any()
        return (part(seen.student.outputs["logits"] - part.total) - 1).square().sum()


def test_every_objective_reads_its_own_teacher(tmp_path):
    one, other = Toy(seed=3), Toy(seed=4)
    student = Toy(4, 1, 0.0, seed=1)
    module = DistillModule(student, [answer("a", "one"), answer("b", "other", weight=2.0)])
    batch = collate([ToyData()[i] for i in range(8)])
    live = {n: LiveTeacher(m, outputs=module.outputs_of(n)) for n, m in (("one", one), ("other", other))}
    loss = module(batch, {n: t.signal(batch) for n, t in live.items()}).loss
    alone = []
    for model in (one, other):
        plain = DistillModule(student, [answer("x", "teacher")])
        alone.append(plain(batch, LiveTeacher(model, outputs=["logits"]).signal(batch)).loss)
    torch.testing.assert_close(loss, alone[0] + 2 * alone[1])


def test_a_teacher_whose_objectives_weigh_nothing_is_not_run(tmp_path):
    used, idle = Counting(seed=3), Counting(seed=4)
    t = trainer(
        tmp_path, teacher={"used": used, "idle": idle}, steps=3,
        objective_list=[answer("a", "used"), answer("b", "idle", weight=0.0)],
    )  # fmt: skip
    before = idle.calls
    t.train()
    assert (used.calls > 3, idle.calls) == (True, before)


def test_a_teacher_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RecipeError, match='the teacher "big"'):
        trainer(tmp_path, objective_list=[answer("a", "big")])
    module = DistillModule(Toy(4, 1, 0.0, seed=1), [answer("a", "big")])
    with pytest.raises(InputError, match='needs the teacher "big"'):
        module(collate([ToyData()[i] for i in range(4)]), {})


def test_an_entry_for_the_teacher_is_given_to_it_alone():
    batch = collate([ToyData()[i] for i in range(4)])
    teacher, other = Toy(seed=3), torch.randn(4, 5, 3)
    live = LiveTeacher(teacher, outputs=["logits"])
    got = live.signal({**batch, "teacher_pixels": other}).outputs["logits"]
    wanted = teacher(other, batch["words"], batch["words_mask"])["logits"]
    assert torch.equal(got, wanted)
    module = DistillModule(Toy(4, 1, 0.0, seed=1), [answer("a", "teacher")])
    plain, with_entry = module.observe(batch), module.observe({**batch, "teacher_pixels": other})
    assert torch.equal(plain.outputs["logits"], with_entry.outputs["logits"])


def test_a_survey_sees_the_training_set_once_and_is_in_the_checkpoint(tmp_path):
    data, teacher = ToyData(size=40), Toy(seed=3)
    t = trainer(
        tmp_path, teacher=teacher, data=data, objective_list=[Recorder()], steps=4, save_strategy="steps", save_steps=2
    )
    batch = collate([data[i] for i in range(40)])
    with torch.no_grad():
        mean = teacher(batch["pixels"], batch["words"], batch["words_mask"])["logits"].mean(0)
    torch.testing.assert_close(t.model.parts["recorder"].total, mean, atol=1e-5, rtol=1e-5)
    t.train()
    again = trainer(
        tmp_path, teacher=teacher, data=data, objective_list=[Recorder()], steps=4, save_strategy="steps", save_steps=2
    )
    again.model.parts["recorder"].total.zero_()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(again.model.parts["recorder"].total, t.model.parts["recorder"].total)
    for key, value in t.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key


def test_a_survey_of_generated_data_stops_where_it_is_told(tmp_path):
    t = trainer(tmp_path, objective_list=[Recorder()], survey_samples=24, steps=1)
    assert float(t.model.parts["recorder"].rows) == 24


def test_objectives_are_told_how_far_the_training_is(tmp_path):
    recorder = Recorder()
    t = trainer(tmp_path, objective_list=[recorder], data=ToyData(size=32), steps=8, accumulation=2, batch=4)
    recorder.seen.clear()
    t.train()
    assert [p for p, _ in recorder.seen] == [i / 8 for i in range(8) for _ in range(2)]
    assert [e for _, e in recorder.seen] == [i * 8 / 32 for i in range(8) for _ in range(2)]
    assert recorder.stepped == 8 + 1  # and once before the rehearsal


def test_a_part_learns_at_the_rate_of_its_objective(tmp_path):
    slow, fast = Recorder("slow"), Recorder("fast")
    slow.learning_rate, fast.learning_rate = 1e-9, 0.5
    t = trainer(tmp_path, objective_list=[slow, fast, answer("a", "teacher")], steps=2, lr_scheduler_type="constant")
    before = copy.deepcopy(t.model.state_dict())
    t.train()
    moved = {n: (t.model.parts[n].weight - before[f"parts.{n}.weight"]).abs().max() for n in ("slow", "fast")}
    assert moved["slow"] < 1e-6 < 0.1 < moved["fast"]
    rates = {g["lr"] for g in t.optimizer.param_groups}
    assert rates == {1e-9, 0.5, 1e-2}


def test_objectives_take_the_teachers_a_trainer_is_given_ready_made(tmp_path):
    module = DistillModule(Toy(4, 1, 0.0, seed=1), [answer("a", "one")])
    live = LiveTeacher(Toy(seed=3), outputs=["logits"])
    t = DistillationTrainer(
        module, teacher={"one": live}, args=arguments(tmp_path, steps=1), train_dataset=ToyData(), data_collator=collate
    )
    assert t.teachers["one"] is live
    assert t.teacher is None
