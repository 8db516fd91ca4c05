"""Active distillation as a selection policy: when labels are bought, of whom, and that nothing is asked twice."""

import json

import pytest
import torch
from torch.utils.data import Dataset

from potstill.data.files_source import source_from_datasets
from potstill.data.selection import SELECTIONS, ActiveDistillSelection, Pool
from potstill.errors import IntegrityError, RecipeError
from potstill.run import distill
from potstill.students import build_student

N, C, LABELLED = 30, 3, 6


class Asked:
    """A pool of N samples, the first few labelled, and a teacher who is wrong on every fifth."""

    def __init__(self):
        self.calls = []
        self.true = torch.arange(N) % C
        self.labels = torch.where(torch.arange(N) < LABELLED, self.true, -100)
        self.said = torch.where(torch.arange(N) % 5 == 0, (self.true + 1) % C, self.true)
        self.student = torch.randn(N, C, generator=torch.Generator().manual_seed(0))

    def pool(self):
        return Pool(N, lambda: self.student, self.teacher, {"labels": self.labels, "true_class": self.true}.__getitem__)

    def teacher(self, indices=None):
        self.calls.append(indices.tolist())
        return 4.0 * torch.nn.functional.one_hot(self.said[indices], C)


def policy(**options):
    return ActiveDistillSelection(**{"budget": 4, "rounds": 3, **options})


def test_labels_are_bought_round_by_round_until_the_budget_is_spent():
    asked, selection = Asked(), policy(epochs_per_round=2, teacher_error=0.2)
    sizes = [len(selection.choose(asked.pool(), epoch).indices) for epoch in range(10)]
    assert sizes == [6, 6, 10, 10, 14, 14, 18, 18, 18, 18]
    assert [len(call) for call in asked.calls] == [4, 4, 4]
    bought = [i for call in asked.calls for i in call]
    assert len(set(bought)) == 12
    assert min(bought) >= LABELLED


def test_batches_get_the_soft_labels_of_what_was_bought():
    asked, selection = Asked(), policy(teacher_error=0.2)
    first = selection.choose(asked.pool(), 0)
    assert not first.batch["is_bought"].any()
    assert first.batch["soft_labels"].shape == (LABELLED, C)
    chosen = selection.choose(asked.pool(), 1)
    is_bought = chosen.batch["is_bought"]
    assert chosen.indices[~is_bought].tolist() == list(range(LABELLED))
    soft = chosen.batch["soft_labels"]
    assert (soft[~is_bought] == 0).all()
    torch.testing.assert_close(soft[is_bought].sum(1), torch.ones(4))
    assert torch.equal(soft[is_bought].argmax(1), asked.said[chosen.indices[is_bought]])


def test_the_error_of_the_teacher_is_taken_from_the_labelled_samples_once():
    asked, selection = Asked(), policy()
    facts = [selection.choose(asked.pool(), epoch).facts for epoch in range(4)]
    assert asked.calls[0] == list(range(LABELLED))
    assert [len(call) for call in asked.calls] == [6, 4, 4, 4]
    assert facts[0] == {"bought": 0, "asked": 0}
    assert facts[3] == {"bought": 12, "asked": 18, "teacher_error": pytest.approx(2 / 6)}


def test_the_history_can_tell_how_many_bought_labels_are_wrong():
    asked, selection = Asked(), policy(teacher_error=0.2, truth="true_class")
    for epoch in range(3):
        facts = selection.choose(asked.pool(), epoch).facts
    bought = torch.tensor([i for call in asked.calls for i in call])
    assert facts["wrong"] == pytest.approx((bought % 5 == 0).double().mean().item())


@pytest.mark.parametrize("selector", ["robust_active", "margin", "entropy", "k_center", "random"])
def test_a_policy_resumed_through_json_goes_on_exactly(selector):
    straight, asked = policy(selector=selector, seed=3), Asked()
    for epoch in range(3):
        straight.choose(asked.pool(), epoch)
    resumed = policy(selector=selector, seed=3)
    resumed.load_state_dict(json.loads(json.dumps(straight.state_dict())))
    ours, theirs = (p.choose(asked.pool(), 3) for p in (straight, resumed))
    assert torch.equal(ours.indices, theirs.indices)
    assert torch.equal(ours.batch["soft_labels"], theirs.batch["soft_labels"])
    with pytest.raises(IntegrityError):
        resumed.load_state_dict({"bought": []})


def test_what_cannot_be_bought_is_refused():
    asked = Asked()
    with pytest.raises(RecipeError, match="at most 24"):
        policy(budget=9).choose(asked.pool(), 0)
    asked.labels = torch.full((N,), -100)
    with pytest.raises(RecipeError, match="no sample has a label"):
        policy().choose(asked.pool(), 0)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("selector", "margins"), ("budget", 0), ("rounds", 1.0), ("epochs_per_round", True), ("epoch_samples", 0)),
        *(("teacher_error", 1.1), ("teacher_error", "labeled"), ("teacher_error", True), ("gain", "margins")),
    ],
)
def test_options_out_of_range_are_refused_by_name(option, value):
    with pytest.raises(ValueError, match=option):
        policy(**{option: value})


def test_it_is_registered_and_knows_the_length_of_an_epoch():
    assert SELECTIONS.get("active_distill") is ActiveDistillSelection
    assert policy().length(50) == 50
    assert policy(epoch_samples=16).length(50) == 16


class Stripes(Dataset):
    """Pictures of a bright row; the row is the class, and only the first few have their label."""

    def __len__(self):
        return N

    def __getitem__(self, index):
        picture = 0.1 * torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(index))
        picture[0, 2 * (index % C)] += 1
        return {"picture": picture, "label": index % C if index < LABELLED else -100, "true": index % C, "index": index}


def _collate(samples):
    columns = {"labels": "label", "true_class": "true", "sample_id": "index"}
    batch = {key: torch.tensor([s[name] for s in samples]) for key, name in columns.items()}
    return {"pixel_values": torch.stack([s["picture"] for s in samples]), **batch}


FIELDS = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
TINY = (
    *("student.fields={embedding_size: 4, hidden_sizes: [4, 8]}", "selection.budget=4", "selection.rounds=2"),
    *("selection.epoch_samples=12", "train.steps=8", "train.batch_size=6", "train.log_every=1", "train.threads=1"),
    *("train.checkpoint_every=3", "evaluate.shown=0", "evaluate.samples=12"),
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("active") / "teacher"
    options = {"family": "resnet", "architecture": "ResNetForImageClassification", "fields": FIELDS, "seed": 1}
    teacher, _ = build_student("new", None, {**options, "data_fields": _source().model_fields})
    teacher.save_pretrained(folder)
    return {"recipe": "active-distill-digits", "source": _source(), "overrides": (*TINY, f"teacher.model={folder}")}


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    return distill(out=tmp_path_factory.mktemp("active") / "run", **settings)


def _source():
    names = [str(i) for i in range(C)]
    fields = {"num_channels": 1, "num_labels": C, "id2label": dict(enumerate(names))}
    fields["label2id"] = {name: number for number, name in enumerate(names)}
    return source_from_datasets({"train": Stripes(), "test": Stripes()}, _collate, model_fields=fields)


def test_the_packaged_recipe_buys_labels_and_learns_from_them(finished):
    events = [json.loads(line) for line in (finished.folder / "history.jsonl").read_text().splitlines()]
    told = [(e["epoch"], e["chosen"], e["bought"], e["asked"]) for e in events if e["event"] == "selection"]
    assert told == [(0, 6, 0, 0), (1, 10, 4, 10), (2, 14, 8, 14), (3, 14, 8, 14)]
    steps = [e["terms"] for e in events if e["event"] == "step"]
    assert all("bought_labels" not in terms for terms in steps[:2])
    assert any("bought_labels" in terms and terms["bought_labels"]["value"] > 0 for terms in steps[4:])


def test_a_run_stopped_between_two_rounds_goes_on_exactly(finished, settings, tmp_path):
    class StopError(Exception):
        pass

    def stop(event):
        if event["event"] == "step" and event["step"] == 5:
            raise StopError

    with pytest.raises(StopError):
        distill(out=tmp_path / "run", progress=stop, **settings)
    resumed = distill(out=tmp_path / "run", resume=True, **settings)
    for (name, ours), theirs in zip(finished.student.state_dict().items(), resumed.student.state_dict().values()):
        assert torch.equal(ours, theirs), name
