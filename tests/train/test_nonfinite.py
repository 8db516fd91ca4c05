"""NaN and Inf in terms and gradients: named, kept, and either the end of the run or of that step alone."""

import json

import pytest
import torch
from toy_models import Toy, ToyData, objectives, trainer

import potstill.train.nonfinite as nonfinite
from potstill.errors import IntegrityError, NumericsError, RecipeError
from potstill.objectives import Objective
from potstill.policies import RoundRobinPolicy
from potstill.train import load_batch
from potstill.train.guard import SKIPS_IN_A_ROW
from potstill.train.nonfinite import Found, save_batch

BAD = ToyData(bad=(26,))  # in the batch of step 3, rows 24 .. 31
EVERY_STEP = {"save_strategy": "steps", "save_steps": 1, "keep_checkpoints": 0}
SKIP = {"on_nonfinite": "skip", "data": BAD, **EVERY_STEP}


def state(folder, step, name):
    if name == "student":
        from safetensors.torch import load_file

        return load_file(folder / f"checkpoint-{step}" / "student.safetensors")
    saved = torch.load(folder / f"checkpoint-{step}" / "optimizer.pt", weights_only=True)
    return {f"{i}.{k}": v for i, row in saved["state"].items() for k, v in row.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def skips(t):
    return [event for event in t.history.events if event["event"] == "skip"]


class SteepObjective(Objective):
    """0 everywhere, with a gradient that is not a number: the root of a square at 0."""

    name, role, student_outputs = "steep", "task", ("logits",)

    def __init__(self, active=lambda batch: True):
        super().__init__("steep", module="image")
        self.active = active

    def count(self, batch):
        return torch.tensor(1.0)

    def total(self, seen, part):
        logits = seen.student.outputs["logits"]
        return (0 * logits).square().sum().sqrt() if self.active(seen.batch) else 0 * logits.sum()


def test_a_stopped_run_keeps_the_batch_and_says_how_to_load_it(tmp_path):
    t = trainer(tmp_path, data=BAD)
    with pytest.raises(NumericsError, match=r'step 3: the term "answer" became nan; got samples \[24, 25') as error:
        t.train()
    path = tmp_path / "nonfinite" / "step-3.safetensors"
    assert f'potstill.train.load_batch("{path}")' in str(error.value)
    assert 'train.on_nonfinite "skip"' in error.value.hint
    batch, about = load_batch(path)
    assert batch["sample_id"].tolist() == list(range(24, 32))
    assert torch.isnan(batch["pixels"][2]).all()
    assert batch["words_mask"].dtype == torch.bool
    assert (about["step"], about["term"], about["module"]) == (3, "answer", None)


def test_a_hidden_term_names_its_module(tmp_path):
    t = trainer(tmp_path, data=BAD, objective_list=objectives()[1:])
    with pytest.raises(NumericsError, match=r'step 3, module image: the term "hidden\.image" became nan'):
        t.train()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_skipped_step_changes_nothing_but_the_step_number(tmp_path, accumulation):
    t = trainer(tmp_path, batch=8 // accumulation, accumulation=accumulation, steps=6, **SKIP)
    t.train()
    assert same(state(tmp_path, 3, "student"), state(tmp_path, 4, "student"))
    assert same(state(tmp_path, 3, "optimizer"), state(tmp_path, 4, "optimizer"))
    assert not same(state(tmp_path, 4, "student"), state(tmp_path, 5, "student"))
    assert all(torch.isfinite(v).all() for v in state(tmp_path, 6, "optimizer").values())
    (event,) = skips(t)
    assert (event["step"], event["term"]) == (3, "answer")
    assert 26 in event["samples"]
    clean = trainer(tmp_path / "clean", batch=8 // accumulation, accumulation=accumulation, steps=6)
    clean.train()
    steps, others = ([e for e in x.history.events if e["event"] == "step"] for x in (t, clean))
    assert [e["learning_rate"] for e in steps] == [e["learning_rate"] for e in others]
    assert [e["loss"] is None for e in steps] == [False, False, False, True, False, False]
    assert steps[3]["terms"] == {}
    assert steps[2]["loss"] == others[2]["loss"]


def test_the_logged_loss_is_the_mean_of_the_steps_that_were_taken(tmp_path):
    t = trainer(tmp_path / "a", steps=4, logging_steps=4, lr_scheduler_type="constant", **SKIP)
    t.train()
    single = trainer(tmp_path / "b", steps=3, lr_scheduler_type="constant")
    single.train()
    (event,) = [e for e in t.history.events if e["event"] == "step"]
    losses = [e["loss"] for e in single.history.events]
    assert event["loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)


@pytest.mark.parametrize("stop", [2, 3, 4, 5])
def test_a_run_resumed_around_a_skipped_step_equals_the_straight_one_bit_for_bit(tmp_path, stop):
    arms = [("image",), ("text",)]
    # The probe set would end the run if it held the bad sample; it is two batches of 4096 samples.
    common = {**SKIP, "steps": 7, "history": tmp_path / "h.jsonl"}
    straight = trainer(tmp_path / "a", policy=RoundRobinPolicy(arms), **common)
    straight.train()
    resumed = trainer(tmp_path / "b", policy=RoundRobinPolicy(arms), **common)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{stop}"))
    assert same(dict(straight.model.state_dict()), dict(resumed.model.state_dict()))
    assert straight.policy.history == resumed.policy.history
    lines = [json.loads(line) for line in (tmp_path / "h.jsonl").read_text().splitlines()]
    rows = [[(e["event"], e["step"]) for e in events] for events in (lines, straight.history.events)]
    assert rows[0] == rows[1]
    assert ("skip", 3) in rows[0]


def test_too_many_skipped_steps_in_a_row_end_the_run_also_across_a_resume(tmp_path):
    settings = {**SKIP, "data": ToyData(bad=range(16, 4096)), "steps": 20}
    t = trainer(tmp_path, **settings)
    with pytest.raises(NumericsError, match=rf"step {1 + SKIPS_IN_A_ROW}: .*{SKIPS_IN_A_ROW} steps in a row"):
        t.train()
    assert len(skips(t)) == SKIPS_IN_A_ROW
    kept = sorted((tmp_path / "nonfinite").glob("*.safetensors"))
    assert len(kept) == nonfinite.FILES_KEPT
    assert tmp_path / "nonfinite" / f"step-{1 + SKIPS_IN_A_ROW}.safetensors" in kept
    again = trainer(tmp_path, **settings)
    with pytest.raises(NumericsError, match=rf"step {1 + SKIPS_IN_A_ROW}: "):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_names_term_module_and_parameter(tmp_path, max_grad_norm):
    terms = [*objectives(), SteepObjective()]
    t = trainer(tmp_path, objective_list=terms, max_grad_norm=max_grad_norm)
    with pytest.raises(
        NumericsError, match=r'step 0, module image: the norm of the gradient became nan.*student\..*the term "steep"'
    ):
        t.train()
    assert load_batch(tmp_path / "nonfinite" / "step-0.safetensors")[1]["term"] == "steep"


def test_a_gradient_that_is_not_finite_is_skipped_and_its_micro_batch_kept(tmp_path):
    """The second of step 2's two micro-batches of 4: rows 16 .. 19 and 20 .. 23."""
    terms = [*objectives(), SteepObjective(lambda batch: 21 in batch["sample_id"])]
    t = trainer(tmp_path, objective_list=terms, batch=4, accumulation=2, steps=4, on_nonfinite="skip", **EVERY_STEP)
    t.train()
    assert [(e["step"], e["term"], e["module"]) for e in skips(t)] == [(2, "steep", "image")]
    assert same(state(tmp_path, 2, "student"), state(tmp_path, 3, "student"))
    batch, _ = load_batch(tmp_path / "nonfinite" / "step-2.safetensors")
    assert batch["sample_id"].tolist() == [20, 21, 22, 23]


def test_a_gradient_too_large_for_its_norm_is_found(tmp_path):
    class HugeObjective(SteepObjective):
        def total(self, seen, part):
            return 1e25 * seen.student.outputs["logits"].sum()

    t = trainer(tmp_path, objective_list=[*objectives(), HugeObjective()])
    with pytest.raises(NumericsError, match="the norm of the gradient became inf, by its size alone"):
        t.train()


def test_running_means_do_not_take_in_the_batch_of_a_skipped_step(tmp_path):
    class Normed(Toy):
        def __init__(self):
            super().__init__(4, 1, seed=1)
            self.norm = torch.nn.BatchNorm1d(3)

        def forward(self, pixels, words, words_mask=None):
            return super().forward(self.norm(pixels.transpose(1, 2)).transpose(1, 2), words, words_mask)

    t = trainer(tmp_path, student=Normed(), steps=5, on_nonfinite="skip", data=BAD)
    before = t.model.student.norm.num_batches_tracked.item()
    t.train()
    assert t.model.student.norm.running_mean.isfinite().all()
    assert t.model.student.norm.num_batches_tracked == before + 4


def test_an_unknown_way_out_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"train\.on_nonfinite: .*expected stop or skip; got ignore"):
        trainer(tmp_path, on_nonfinite="ignore")


def found(step=0):
    return Found(step, "it broke")


def test_a_batch_comes_back_as_it_was_nested_too(tmp_path):
    batch = {
        "ids": torch.arange(4).view(2, 2).T,
        "half": torch.tensor([1.5, float("nan")], dtype=torch.bfloat16),
        "inner": {"texts": ["a", "ö"], "pair": (torch.ones(1), None)},
        "flag": True,
        "odd": object,
    }
    path = save_batch(tmp_path / "x" / "step-0.safetensors", batch, found())
    again, about = load_batch(path)
    assert torch.equal(again["ids"], batch["ids"])
    assert again["half"].dtype == torch.bfloat16
    assert again["inner"]["texts"] == ["a", "ö"]
    assert torch.equal(again["inner"]["pair"][0], torch.ones(1))
    assert again["flag"] is True
    assert again["odd"] == "<class 'object'>"
    assert about == {
        "version": 1, "step": 0, "what": "it broke", "term": None, "module": None, "samples": None, "file": path.name
    }  # fmt: skip
    assert {p.name for p in path.parent.iterdir()} == {"step-0.safetensors", "step-0.json"}


def test_what_is_too_large_is_left_out_and_the_rest_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(nonfinite, "MAX_BYTES", 100)
    batch = {"small": torch.zeros(10), "large": torch.zeros(100), "last": torch.zeros(2)}
    again, _ = load_batch(save_batch(tmp_path / "step-0.safetensors", batch, found()))
    assert again["large"] is None
    assert again["last"].tolist() == [0, 0]
    form = json.loads((tmp_path / "step-0.json").read_text())["batch"]["mapping"]["large"]
    assert form == {"left_out": [100], "dtype": "torch.float32"}


def test_a_folder_that_cannot_be_written_does_not_hide_what_was_found(tmp_path):
    (tmp_path / "nonfinite").write_text("a file")
    t = trainer(tmp_path, data=BAD)
    with pytest.raises(NumericsError, match=r'the term "answer" became nan') as error:
        t.train()
    assert "load_batch" not in str(error.value)


@pytest.mark.parametrize("damage", ["safetensors", "json", "form"])
def test_a_damaged_file_is_refused_by_name(tmp_path, damage):
    path = save_batch(tmp_path / "step-0.safetensors", {"a": torch.ones(1)}, found())
    if damage == "form":
        path.with_suffix(".json").write_text("{}")
    else:
        path.with_suffix(f".{damage}").write_bytes(b"torn")
    with pytest.raises(IntegrityError, match=r"step-0\."):
        load_batch(path)
