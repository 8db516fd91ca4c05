"""Selection: which samples an epoch is made of."""

import pytest
import torch
from toy_models import Toy, ToyData, collate, objectives, trainer

from potstill.data.selection import Chosen, SelectionPolicy
from potstill.errors import InputError, RecipeError
from potstill.objectives import Objective, Where
from potstill.teachers import LiveTeacher
from potstill.train import DistillationTrainer, DistillModule


class Surest(SelectionPolicy):
    """The third of the samples on which the teacher, then the student, is surest; remembers how often it chose."""

    keys = ("sample_weight",)

    def __init__(self, share=1 / 3):
        self.share, self.times, self.asked = share, 0, []

    def length(self, size):
        return int(self.share * size)

    def choose(self, pool, epoch):
        self.times += 1
        logits = pool.teacher(None) if epoch == 0 else pool.student()
        sure = logits.softmax(-1).amax(-1)
        indices = sure.argsort(descending=True, stable=True)[: self.length(pool.size)]
        self.asked.append((epoch, indices.tolist()))
        return Chosen(indices, {"sample_weight": sure[indices]}, {"surest": float(sure.max())})

    def state_dict(self):
        return {"times": self.times}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.times = state["times"]


class Weighted(Objective):
    """Notes the samples and weights of every batch."""

    student_outputs = ("logits",)

    def __init__(self):
        super().__init__("weighted")
        self.seen = []

    def count(self, batch):
        return Where().count(batch)

    def total(self, seen, part):
        self.seen.append((seen.batch["sample_id"].tolist(), seen.batch["sample_weight"].tolist()))
        return (seen.batch["sample_weight"] * seen.student.outputs["logits"].square().mean(-1)).sum()


def selecting(folder, policy, noted=None, history=None, data=None, **settings):
    plain = trainer(folder, data=data or ToyData(size=48), **settings)
    return DistillationTrainer(
        Toy(4, 1, 0.1, seed=1),
        [*objectives(), *([noted] if noted else [])],
        teacher=Toy(),
        selection=policy,
        args=plain.args,
        train_dataset=plain.train_dataset,
        data_collator=collate,
        history=history,
    )


def test_an_epoch_is_made_of_the_chosen_samples_alone(tmp_path):
    policy, noted = Surest(), Weighted()
    t = selecting(tmp_path, policy, noted, batch=4, steps=8, history=tmp_path / "h.jsonl")
    noted.seen.clear()
    t.train()
    assert [e for e, _ in policy.asked] == [0, 1]
    for epoch, (_, chosen) in enumerate(policy.asked):
        seen = [i for ids, _ in noted.seen[4 * epoch : 4 * epoch + 4] for i in ids]
        assert sorted(seen) == sorted(chosen)
    assert policy.asked[0][1] != policy.asked[1][1]
    events = [e for e in t.history.events if e["event"] == "selection"]
    assert [(e["epoch"], e["chosen"], e["step"]) for e in events] == [(0, 16, 0), (1, 16, 4)]


def test_every_sample_carries_what_the_choice_says_of_it(tmp_path):
    policy, noted = Surest(), Weighted()
    t = selecting(tmp_path, policy, noted, batch=4, steps=4)
    noted.seen.clear()
    t.train()
    weights = dict(zip(t.selector.chosen.indices.tolist(), t.selector.chosen.batch["sample_weight"].tolist()))
    for ids, given in noted.seen:
        assert given == [weights[i] for i in ids]


@pytest.mark.parametrize("stop", [2, 4, 6, 7])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_resumed_in_an_epoch_or_between_two_equals_the_straight_one(tmp_path, stop, accumulation):
    common = {"batch": 4, "steps": 10, "accumulation": accumulation, "save_strategy": "steps", "save_steps": 1}
    straight = selecting(tmp_path, Surest(), Weighted(), keep_checkpoints=0, history=tmp_path / "h.jsonl", **common)
    straight.train()
    events = [e for e in straight.history.events if e["event"] == "selection"]
    policy = Surest()
    again = selecting(tmp_path, policy, Weighted(), keep_checkpoints=0, history=tmp_path / "h.jsonl", **common)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    for key, value in straight.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key
    assert policy.times == straight.selector.policy.times
    assert [e for e in again.history.events if e["event"] == "selection"] == events


def test_an_epoch_longer_than_the_choice_repeats_it(tmp_path):
    class Two(Surest):
        def choose(self, pool, epoch):
            return Chosen(torch.tensor([5, 9]), {"sample_weight": torch.ones(2)})

    noted = Weighted()
    t = selecting(tmp_path, Two(), noted, batch=4, steps=4)
    noted.seen.clear()
    t.train()
    assert {i for ids, _ in noted.seen for i in ids} == {5, 9}


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (Chosen(torch.tensor([], dtype=torch.long)), "no sample was chosen"),
        (Chosen(torch.tensor([3, 3]), {"sample_weight": torch.ones(2)}), "twice"),
        (Chosen(torch.tensor([99]), {"sample_weight": torch.ones(1)}), "do not exist"),
        (Chosen(torch.tensor([1, 2])), 'lacks "sample_weight"'),
    ],
)
def test_a_choice_that_cannot_be_is_refused(tmp_path, chosen, message):
    policy = Surest()
    policy.choose = lambda pool, epoch: chosen
    with pytest.raises(InputError, match=message):
        selecting(tmp_path, policy)


def test_an_epoch_smaller_than_a_batch_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="smaller than one batch"):
        selecting(tmp_path, Surest(share=0.1), batch=8)


def test_the_teacher_can_be_asked_about_some_samples(tmp_path):
    class Asking(Surest):
        def choose(self, pool, epoch):
            some = torch.tensor([7, 2])
            torch.testing.assert_close(pool.teacher(some), pool.teacher(None)[some])
            assert torch.equal(pool.batch("sample_id"), torch.arange(48))
            return super().choose(pool, epoch)

    selecting(tmp_path, Asking(), batch=4, steps=1).train()


def test_both_models_are_asked_with_the_inputs_the_run_gives_them(tmp_path):
    class NoMask(Toy):
        def forward(self, pixels, words, words_mask=None):
            assert words_mask is None
            return super().forward(pixels, words)

    plain, inputs = trainer(tmp_path, data=ToyData(size=48), batch=4, steps=3), ["pixels", "words"]
    module = DistillModule(NoMask(4, 1), objectives(), inputs=inputs)
    live = LiveTeacher(NoMask(), outputs=module.teacher_outputs, taps=module.teacher_taps, inputs=inputs)
    settings = {"args": plain.args, "train_dataset": plain.train_dataset, "data_collator": collate}
    DistillationTrainer(module, teacher=live, selection=Surest(share=1 / 6), **settings).train()
