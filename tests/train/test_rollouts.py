"""On-policy training: the student writes while it trains, and a run goes on exactly where it stopped."""

import copy
import json

import pytest
import torch

from potstill.data.generation import OnPolicySampler
from potstill.errors import IntegrityError, RecipeError
from potstill.losses import generalized_jsd, kd_kl
from potstill.objectives import LabelObjective, MiniLLMObjective, OutputObjective, Where
from potstill.train import DistillationArguments, DistillationTrainer
from tiny_texts import Texts, collate
from tiny_writers import END, PAD, llama


def gkd():
    where = Where(labels="labels")
    return [OutputObjective("jsd", generalized_jsd, "logits", where=where, shift=True, options={"beta": 0.5})]


def minillm():
    return [
        MiniLLMObjective("minillm", "logits"),
        LabelObjective("text", "logits", "data_labels", shift=True),
    ]


def trainer(tmp_path, objectives, rollouts, *, steps=6, teacher=None, **options):
    args = DistillationArguments(
        output_dir=str(tmp_path), max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-2,
        logging_steps=1, save_strategy="steps", save_steps=2, use_cpu=True, seed=0, data_seed=0, **options,
    )  # fmt: skip
    return DistillationTrainer(
        llama(0), objectives, teacher=llama(1) if teacher is None else teacher, args=args, train_dataset=Texts(),
        data_collator=collate, rollouts=rollouts,
    )  # fmt: skip


def sampler(**options):
    settings = {"lmbda": 0.5, "max_new_tokens": 4, "eos_token_id": END, "pad_token_id": PAD, "seed": 1} | options
    return OnPolicySampler(**settings)


CASES = {
    "gkd": (gkd, {}),
    "gkd with a buffer": (gkd, {"buffer": 8, "reuse": 0.5}),
    "minillm": (minillm, {"alpha": 0.2, "per": "row", "buffer": 8, "reuse": 0.3}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_stopped_between_rollouts_goes_on_exactly(tmp_path, case):
    make, options = CASES[case]
    settings = {"gradient_accumulation_steps": 2}
    whole = trainer(tmp_path / "whole", make(), sampler(**options), **settings)
    whole.train()
    first = trainer(tmp_path / "parts", make(), sampler(**options), **settings)
    stop_at(first, 4)
    first.train()
    second = trainer(tmp_path / "parts", make(), sampler(**{**options, "seed": 99}), **settings)
    second.train(resume_from_checkpoint=True)
    for (name, a), b in zip(whole.model.named_parameters(), second.model.parameters()):
        assert torch.equal(a, b), name
    assert [e["loss"] for e in whole.history.events[4:]] == [e["loss"] for e in second.history.events[-2:]]
    state = second.rollouts.sampler.state_dict()
    for row, other in zip(state["rows"], whole.rollouts.sampler.state_dict()["rows"], strict=True):
        assert torch.equal(row["tokens"], other["tokens"])


def stop_at(trainer, step):
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == step

    trainer.add_callback(Stop())


def test_the_student_of_the_moment_writes(tmp_path):
    texts = []

    class Watching(OnPolicySampler):
        def batch(self, batch, student, teacher=None):
            texts.append(copy.deepcopy(student.state_dict()))
            return super().batch(batch, student, teacher)

    one = Watching(1.0, 3, eos_token_id=END, pad_token_id=PAD)
    trainer(tmp_path, gkd(), one, steps=3).train()
    assert len(texts) == 3
    assert not torch.equal(texts[0]["lm_head.weight"], texts[1]["lm_head.weight"])


def test_the_teacher_is_asked_about_what_was_written(tmp_path):
    run = trainer(tmp_path, gkd(), sampler(lmbda=1.0), steps=2)
    asked, trained = [], []
    signal, forward = run.teacher.signal, run.model.forward
    run.teacher.signal = lambda batch, taps=None: (asked.append(batch["input_ids"].clone()), signal(batch, taps))[1]
    run.model.forward = lambda batch, *rest: (trained.append(batch["input_ids"].clone()), forward(batch, *rest))[1]
    run.train()
    assert len(asked) == len(trained) == 2
    data = {tuple(row.tolist()) for row in Texts().rows}
    for a, b in zip(asked, trained):
        assert torch.equal(a, b)
        assert not any(tuple(row.tolist()) in data for row in b)


def test_only_written_tokens_are_divided_by(tmp_path):
    run = trainer(tmp_path, minillm(), sampler(lmbda=0.5, per="row"), steps=4)
    counts = []
    get = run.get_batch_samples
    run.get_batch_samples = lambda *args: (lambda found: (counts.append(found), found)[1])(get(*args))
    run.train()
    for batches, found in counts:
        assert found["minillm"] == sum((b["rollout_labels"][:, 1:] != -100).sum() for b in batches)
        assert found["text"] == sum((b["data_labels"][:, 1:] != -100).sum() for b in batches)
    assert any(f["minillm"] > 0 and f["text"] > 0 for _, f in counts)


def test_a_checkpoint_without_this_ranks_texts_is_refused(tmp_path):
    run = trainer(tmp_path, gkd(), sampler(), steps=2)
    run.train()
    folder = tmp_path / "checkpoint-2"
    (folder / "rollouts-0.pt").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["rollouts-0.pt"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    again = trainer(tmp_path, gkd(), sampler(), steps=4)
    with pytest.raises(IntegrityError, match=r"rollouts-0\.pt"):
        again.train(resume_from_checkpoint=True)


def test_a_teacher_that_is_not_there_cannot_take_part(tmp_path):
    objectives = [LabelObjective("text", "logits", "labels", shift=True)]
    args = DistillationArguments(output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, use_cpu=True)
    with pytest.raises(RecipeError, match="takes part in the writing"):
        DistillationTrainer(
            llama(0), objectives, args=args, train_dataset=Texts(), data_collator=collate, rollouts=sampler(alpha=0.2)
        )


def test_a_sharded_student_cannot_write(tmp_path):
    with pytest.raises(RecipeError, match="sharded"):
        trainer(tmp_path, gkd(), sampler(), shard=True)


def test_on_policy_training_brings_the_student_closer_where_it_writes(tmp_path):
    """The acceptance experiment in small: KL on the student's own text falls."""

    def distance(student, teacher):
        own = sampler(lmbda=1.0, max_new_tokens=6, seed=7).batch(collate([Texts()[i] for i in range(32)]), student)
        with torch.no_grad():
            logits = [m(input_ids=own["input_ids"]).logits[:, :-1] for m in (student, teacher)]
        return kd_kl(*logits, mask=own["rollout_labels"][:, 1:] != -100).item()

    run = trainer(tmp_path, gkd(), sampler(lmbda=1.0), steps=40)
    before = distance(run.model.student, run.teacher.model)
    run.train()
    assert distance(run.model.student, run.teacher.model) < 0.7 * before
